"""Where the commands start, before anything of ``ptycho_torch`` is imported.

The TensorFlow reference's project installs a package ``ptycho_torch`` too. With both in one environment their files
mix in one folder, and of files with one name the last that was installed stays. This module has a name that the other
project has not. It looks for that, and for modules that our record has not, and says it in one line.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

_PACKAGE, _DISTRIBUTION = "ptycho_torch", "ptycho-torch"

_OURS, _THEIRS = os.path.join("commands", "cli.py"), os.path.join("cli", "__init__.py")
"""A file that only this project has, and one that only the other has."""


def mixed_up() -> str:
    """Say in one line whose files are in the package ``ptycho_torch`` and what to do; empty where all are ours."""
    found = importlib.util.find_spec(_PACKAGE)  # imports nothing, since it is no module of a package
    folder = next(iter((found.submodule_search_locations if found is not None else None) or ()), "")
    ours_run = os.path.isfile(os.path.join(folder, _OURS)) and not os.path.isfile(os.path.join(folder, _THEIRS))
    if ours_run and not _unrecorded(folder):
        return ""
    owner = _owner(folder)
    if ours_run and not owner:
        return ""  # A module that a user has put there is in nobody's place.
    again = f"then pip install --force-reinstall --no-deps {_DISTRIBUTION}"
    remedy = (
        f"Keep one of the two in an environment: pip uninstall -y {owner.partition(' ')[0]}, {again}"
        if owner
        else f"No distribution owns them: take {os.path.dirname(folder) or 'it'} off PYTHONPATH and sys.path, {again}"
    )
    return (
        f"error: the package {_PACKAGE} in {folder or 'no folder'} has files of {owner or 'another project'}, which "
        f"stand in the place of ours; expected only {_DISTRIBUTION}. {remedy}. The TensorFlow reference can stay "
        "a checkout that nobody installs: pytest conformance --parity-reference live:/PATH/OF/CHECKOUT"
    )


def _unrecorded(folder: str) -> bool:
    """Return True if a module in a folder is not in our record; a checkout and an editable installation have none."""
    from importlib import metadata

    try:
        files = metadata.files(_DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        return False
    ours = {os.path.realpath(str(file.locate())) for file in files if file.parts[:1] == (_PACKAGE,)}
    if os.path.realpath(os.path.join(folder, _OURS)) not in ours:
        return False
    found = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names if name.endswith(".py"))
    return any(os.path.realpath(path) not in ours for path in found)


def _owner(folder: str) -> str:
    """Return name and version of the other distribution with files in a folder; empty where there is none."""
    from importlib import metadata

    for each in metadata.distributions():
        name = str(each.metadata["Name"] or "")
        if name.lower().replace("_", "-") == _DISTRIBUTION:
            continue
        for file in each.files or ():
            if file.parts[:1] == (_PACKAGE,) and os.path.samefile(str(each.locate_file(_PACKAGE)), folder):
                return f"{name} {each.version}"
    return ""


def run_torch() -> int:
    """Run the command ``ptycho-torch``; return its exit code."""
    return _run("ptycho-torch", "ptycho_torch.commands.cli")


def run_bridge() -> int:
    """Run the command ``ptycho-bridge``; return its exit code."""
    return _run("ptycho-bridge", "ptycho_tf_bridge.commands.cli")


def _run(program: str, module: str) -> int:
    if line := mixed_up():
        print(f"{program}: {line}", file=sys.stderr)  # noqa: T201 - the command's last word
        return 1
    return int(importlib.import_module(module).main())

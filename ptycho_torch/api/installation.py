"""Whose files are in the package ``ptycho_torch``: another project installs one of this name."""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path

_PACKAGE, _DISTRIBUTION = "ptycho_torch", "ptycho-torch"


@functools.cache
def foreign_files() -> str:
    """Say in one line that modules of another distribution are in this package; empty where there are none.

    A checkout and an editable installation have no record of the package, and are not judged; nor are modules that no
    distribution owns.
    """
    try:
        files = metadata.files(_DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        return ""
    folder = Path(__file__).resolve().parents[1]
    ours = {Path(str(file.locate())).resolve() for file in files if file.parts[0] == _PACKAGE}
    if Path(__file__).resolve() not in ours:
        return ""
    foreign = sorted(path for path in folder.rglob("*.py") if path not in ours)
    owner = _owner(set(foreign)) if foreign else ""
    if not owner:
        return ""
    more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    return (
        f"The package {_PACKAGE} in {folder} has files of {owner} ({foreign[0].relative_to(folder)}{more}), which may "
        "stand in the place of ours. Keep one of the two in an environment: "
        f"pip uninstall -y {owner.partition(' ')[0]}, then pip install --force-reinstall --no-deps {_DISTRIBUTION}"
    )


def _owner(paths: set[Path]) -> str:
    """Return name and version of a distribution that has installed one of some files; empty where none has."""
    for each in metadata.distributions():
        for file in each.files or ():
            if file.parts[0] == _PACKAGE and Path(str(file.locate())).resolve() in paths:
                return f"{each.metadata['Name']} {each.version}"
    return ""

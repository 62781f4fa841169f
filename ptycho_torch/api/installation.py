"""Whose files are in the package ``ptycho_torch``: another project installs one of this name."""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path

_PACKAGE, _DISTRIBUTION = "ptycho_torch", "ptycho-torch"


@functools.cache
def foreign_files() -> str:
    """Say in one line that modules of another distribution are in this package; empty where there are none.

    A checkout and an editable installation have no record of the package, and are not judged.
    """
    try:
        files = metadata.files(_DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        return ""
    folder = Path(__file__).parents[1]
    ours = {Path(str(file.locate())).resolve() for file in files if file.parts[0] == _PACKAGE}
    if Path(__file__).resolve() not in ours:
        return ""
    foreign = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py") if path.resolve() not in ours)
    if not foreign:
        return ""
    more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    return (
        f"The package {_PACKAGE} in {folder} has files that {_DISTRIBUTION} did not install ({foreign[0]}{more}): "
        f"another distribution owns them. Keep one of the two in an environment: uninstall the other, then pip install "
        f"--force-reinstall --no-deps {_DISTRIBUTION}"
    )

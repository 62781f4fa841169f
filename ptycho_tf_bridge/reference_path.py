"""Where the TensorFlow reference is: the name of an installed package, or the path of a checkout.

The reference's project installs a package ``ptycho_torch`` beside ``ptycho``, as this project does. Of a path, only the
package of the reference is imported, so its rival is never seen: neither has to be installed in the environment of the
other.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from ptycho_tf_bridge.errors import LiveReferenceError

_PACKAGE = "ptycho"
"""Its name in a checkout."""

_MARKS = ("__init__.py", "config/config.py")
"""Files that the package has."""


class _OnePackage(importlib.abc.MetaPathFinder):
    """Finds one package in one folder; what lies next to it is not found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the package itself; its modules are found by its search path."""
        if fullname != self.folder.name:
            return None
        places: Any = [str(self.folder)]
        return importlib.util.spec_from_file_location(
            fullname, self.folder / "__init__.py", submodule_search_locations=places
        )


def import_name(reference: str) -> str:
    """Return the name under which a reference can be imported; a path is made importable for the whole process.

    Args:
        reference: name of an installed package, or the path of a checkout or of its package. A text with a separator
            of folders is a path.

    Raises:
        LiveReferenceError: there is no such package, or another one of its name is already imported.
    """
    if os.sep not in reference and (os.altsep is None or os.altsep not in reference):
        return reference
    named = Path(os.path.abspath(Path(reference).expanduser()))
    folder = next((each for each in (named, named / _PACKAGE) if all((each / mark).is_file() for mark in _MARKS)), None)
    if folder is None:
        found = "found there is no such folder" if not named.is_dir() else "it holds no package of the reference"
        raise LiveReferenceError(
            f"{reference}: {found}; expected a checkout of the TensorFlow reference, with {_PACKAGE}/{_MARKS[1]}, or "
            "its package folder. Name that folder, or an installed package (live:ptycho)."
        )
    if not folder.name.isidentifier():
        raise LiveReferenceError(
            f"{reference}: a package in a folder {folder.name!r} cannot be imported; expected {_PACKAGE}. Rename it."
        )
    loaded = sys.modules.get(folder.name)
    places = {Path(each).resolve() for each in getattr(loaded, "__path__", ())}
    if loaded is not None and folder.resolve() not in places:
        raise LiveReferenceError(
            f"{reference}: {folder.name} is imported from {loaded.__file__} in this process already; expected none "
            "yet. Give each package a process of its own."
        )
    if loaded is None:
        sys.meta_path[:] = [each for each in sys.meta_path if getattr(each, "folder", None) != folder]
        sys.meta_path.insert(0, _OnePackage(folder))
    return folder.name

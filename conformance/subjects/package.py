"""Which package of the reference was driven: version, commit, path and digest, for whoever reads a report later."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from conformance.provenance.digest import file_digest

_SHOWN_DIGITS = 12
_GIT_S = 60


@dataclasses.dataclass(frozen=True)
class ReferencePackage:
    """A package of the reference that was imported.

    Attributes:
        name: that it is imported under.
        version: distribution and version; empty where no distribution installed it.
        commit: of the checkout that it is in, and whether files differ from it; empty outside of one.
        path: of its folder, or of its file where it is one module.
        sha256: over a line "NAME SHA256" for each of its Python files, in the order of the names.
        built_by: the function that builds its model; empty where none was called.
    """

    name: str
    version: str
    commit: str
    path: str
    sha256: str
    built_by: str = ""

    @property
    def known_as(self) -> str:
        """Version and commit."""
        return ", ".join(each for each in (self.version, self.commit) if each) or "of unknown version"

    @property
    def label(self) -> str:
        """Tell it from others in one short line."""
        return f"{self.known_as}, {self.path}, sha256 {self.sha256[:_SHOWN_DIGITS]}"

    def __str__(self) -> str:
        """Return one line with everything."""
        built = f", model built by {self.built_by}" if self.built_by else ""
        return f"reference {self.name}: {self.known_as}, {self.path}, sha256 {self.sha256}{built}"


def identify(name: str, built_by: str = "") -> ReferencePackage:
    """Say which package was imported under a name.

    Args:
        name: of a package that has been imported.
        built_by: function that builds its model.
    """
    module = sys.modules[name]
    place = Path(next(iter(getattr(module, "__path__", ())), str(module.__file__))).resolve()
    folder, found = (place, place.rglob("*.py")) if place.is_dir() else (place.parent, [place])
    lines = sorted(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n" for path in found)
    sha256 = hashlib.sha256("".join(lines).encode()).hexdigest()
    return ReferencePackage(name, _version(name, place), _commit(folder), str(place), sha256, built_by)


def _version(name: str, place: Path) -> str:
    for distribution in metadata.packages_distributions().get(name, ()):
        if Path(str(metadata.distribution(distribution).locate_file(name))).resolve() == place.with_suffix(""):
            return f"{distribution} {metadata.version(distribution)}"
    return ""


def _commit(folder: Path) -> str:
    """Return the commit of the checkout that tracks a folder; empty where none does, or there is no git."""
    if not _git(folder, "ls-files", "--", "*.py"):
        return ""
    changed = ", with changes" if _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".") else ""
    commit = _git(folder, "rev-parse", "HEAD")
    return f"commit {commit}{changed}" if commit else ""


def _git(folder: Path, *arguments: str) -> str:
    command: Sequence[str] = ("git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments)
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""

"""What hatchling adds when it builds: an SBOM, the gate's sign-off, and the addresses of the repository.

Every wheel has a CycloneDX list of what it needs (PEP 770). One that is built with ``PTYCHO_SIGN_OFF=FILE`` has the
decision of the gate as ``conformance/sign-off.json``; ``python -m conformance signed`` checks it. Addresses are those
of the repository whose workflow builds it, and no wheel that is built elsewhere names any.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface
from packaging.requirements import Requirement

SBOM = "ptycho-torch.cdx.json"


class CustomMetadataHook(MetadataHookInterface):
    """Adds the addresses of the repository."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set ``urls`` from the variables that a workflow has."""
        server, repository = (os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY"))
        if server and repository:
            source = f"{server}/{repository}"
            metadata["urls"] = {
                "Source": source,
                "Documentation": f"{source}/tree/main/docs",
                "Changelog": f"{source}/blob/main/CHANGELOG.md",
                "Issues": f"{source}/issues",
            }


class CustomBuildHook(BuildHookInterface[Any]):
    """Adds files that are made while a wheel is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the SBOM, and the sign-off where the environment names one."""
        if self.target_name != "wheel" or version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / SBOM
        core = self.metadata.core
        pins = (Path(self.root) / "constraints.txt").read_text(encoding="utf-8")
        bom = sbom(core.name, self.metadata.version, core.dependencies, core.optional_dependencies, pins)
        path.write_text(json.dumps(bom, indent=1) + "\n", encoding="utf-8")
        build_data["sbom_files"].append(str(path))
        if sign_off := os.environ.get("PTYCHO_SIGN_OFF"):
            build_data["force_include"][str(Path(sign_off).resolve(strict=True))] = "conformance/sign-off.json"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the SBOM's own file."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def sbom(
    name: str, version: str, required: list[str], optional: dict[str, list[str]], constraints: str
) -> dict[str, Any]:
    """Return a CycloneDX list of what a wheel needs, in the versions that it was tested with.

    The same sources give the same list: it has no time and no serial number.

    Args:
        name: of the project.
        version: of the project.
        required: requirements of every installation.
        optional: extra → requirements.
        constraints: lines of ``NAME==VERSION``.
    """
    pinned = {_normal(each): pin for each, pin in re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE)}
    scopes = {_normal(Requirement(each).name): "optional" for extra in optional.values() for each in extra}
    scopes |= {_normal(Requirement(each).name): "required" for each in required}
    root = _component(name, version)
    parts = [_component(each, pinned.get(each)) | {"scope": scope} for each, scope in sorted(scopes.items())]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root | {"licenses": [{"license": {"id": "BSD-3-Clause"}}]}},
        "components": parts,
        "dependencies": [{"ref": root["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _component(name: str, version: str | None) -> dict[str, Any]:
    place = f"pkg:pypi/{_normal(name)}" + (f"@{version}" if version else "")
    known = {"version": version} if version else {}
    return {"type": "library", "bom-ref": place, "name": name, "purl": place} | known


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

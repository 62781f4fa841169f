"""What the tests share. Shapes in annotations are checked while the tests run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Settings check themselves, with errors of their own; everything that takes tensors is checked here.
_CHECKED = ("helper", "probe", "scaling", "losses", "reassembly", "model")
install_import_hook([f"ptycho_torch.{name}" for name in _CHECKED], "beartype.beartype")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recordings and scans that are not part of the repository."""
    folder = Path(os.environ.get("PTYCHO_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"recordings outside the repository are absent: {folder}")
    return folder

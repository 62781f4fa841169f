"""What the tests share. Shapes in annotations are checked while the tests run."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from jaxtyping import install_import_hook

# Settings check themselves, with errors of their own; everything that takes tensors is checked here.
_CHECKED = ("helper", "data.probe", "data.scaling", "losses", "reconstruction.reassembly", "model")
install_import_hook([f"ptycho_torch.{name}" for name in _CHECKED], "beartype.beartype")

REPOSITORY = Path(__file__).parents[1]
# Runs of the suite inside tests are not the run that GitHub shows.
os.environ.pop("GITHUB_STEP_SUMMARY", None)
_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recordings and scans that are not part of the repository."""
    folder = Path(os.environ.get("PTYCHO_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"recordings outside the repository are absent: {folder}")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small networks only lose by threads, and by those of other tests' processes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def import_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Write a module of the reference's dataclasses, and import it under a name of its own."""
    from conformance.spec.drift import import_reference

    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def imported(source: str) -> ModuleType:
        names.append(f"their_config_{next(_NUMBERS)}")
        (tmp_path / f"{names[-1]}.py").write_text(source, encoding="utf-8")
        return import_reference(names[-1])

    yield imported
    for name in names:
        sys.modules.pop(name, None)

"""Memory that PyTorch frees is kept for its next tensor."""

from __future__ import annotations

import platform

import pytest
import torch

from ptycho_torch.training import freed_memory

PAGE_BYTES = 4096


def faults_of_large_tensors() -> int:
    """Return how many pages the system cleared while ten tensors of 64 MB came and went, as ten had before."""
    import resource

    for _ in range(10):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not that of GNU")
def test_the_next_tensor_takes_the_memory_of_the_last() -> None:
    """Without it, blocks above 32 MB are always mapped anew."""
    assert freed_memory.keep_freed_memory()
    assert faults_of_large_tensors() < 10 * 2**26 / PAGE_BYTES / 20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: pytest.fail("the C library was touched"))
    assert not freed_memory.keep_freed_memory()

"""A short run of each harness of the fuzzer, and what the long ones have found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fuzz import fuzzing
from tests.fuzz.fuzzing import HARNESSES, Fuzzing, fuzz
from tests.fuzz.readers import READERS


@pytest.mark.parametrize("name", HARNESSES)
def test_a_short_run_finds_nothing(name: str) -> None:
    """Ten seconds for all; ``make fuzz`` runs longer."""
    if "hdf5" in name and sys.platform != "linux":
        pytest.skip("the process that reads HDF5 is forked here, which only Linux does safely")
    tally = fuzz(name, 0.8, 400)
    assert tally.crashes == {}
    assert tally.hangs == {}
    assert tally.refused > 0
    assert tally.executions > 5


def test_every_reader_has_a_harness() -> None:
    assert {reader for reader, _ in HARNESSES.values()} == READERS.keys() - {"archive"}


def test_a_reader_that_crashes_or_hangs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(content: bytes, folder: Path) -> None:
        if content:
            raise RecursionError("deep")
        end = fuzzing.cpu_s() + 0.3
        while fuzzing.cpu_s() < end:
            pass

    monkeypatch.setattr(fuzzing, "READERS", {"npy": broken})
    monkeypatch.setattr(fuzzing, "HANG_S", 0.1)
    fuzzing_npy = Fuzzing("npy", tmp_path)
    fuzzing_npy.at_random([b"", b"a"], 0.0)
    assert fuzzing_npy.tally.executions == 3
    assert [key.partition(" ")[0] for key in fuzzing_npy.tally.crashes] == ["RecursionError"]
    assert list(fuzzing_npy.tally.hangs.values()) == [b""]

"""More than a thousand archives from strangers: refused in one clear line, or read as what they are; nothing is run.

The archives are drawn by ``archive_damage.py`` and ``content_damage.py`` and read by ``watched_reading.py``, in two
processes of their own.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from typing import Any

import pytest

READER = ("-m", "tests.support.archives.watched_reading")
PARTS = 2
LIMIT_BYTES = 2**30
LIMIT_S = 5.0


def start(*options: str) -> subprocess.Popen[str]:
    # Warnings are errors here as in every test.
    command = [sys.executable, "-W", "error", *READER, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors[-3000:]
    result: dict[str, Any] = json.loads(output)
    return result


@pytest.fixture(scope="module")
def readings() -> list[dict[str, Any]]:
    processes = [start("--part", str(part), "--parts", str(PARTS)) for part in range(PARTS)]
    try:
        return [finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def total(readings: list[dict[str, Any]], key: str) -> collections.Counter[str]:
    return sum((collections.Counter(reading[key]) for reading in readings), collections.Counter())


def test_every_archive_is_refused_in_one_clear_line_or_read_as_what_it_is(readings: list[dict[str, Any]]) -> None:
    assert [wrong for reading in readings for wrong in reading["wrong"]] == []
    assert sum(reading["read"] for reading in readings) >= 1000


def test_nothing_is_run_and_nothing_is_written(readings: list[dict[str, Any]]) -> None:
    """Each thing that the watch saw and that is not allowed stands in ``wrong``; code would have left the canary."""
    assert not any(reading["canary"] for reading in readings)
    assert [event for reading in readings for wrong in reading["wrong"] for event in wrong["seen"]] == []


def test_damage_reaches_every_layer(readings: list[dict[str, Any]]) -> None:
    """Archives that only ZIP's checksums refused would say nothing of what lies below."""
    outcomes = total(readings, "outcomes")
    least = {
        "refused: the file": 200,
        "refused: params.dill": 150,
        "refused: manifest.dill": 80,
        "refused: variables.index": 100,
        "refused: model.weights.h5": 80,
        "refused: model.h5": 20,
        "refused: config.json": 40,
        "same": 50,
        "sound": 50,
    }
    assert {outcome: (outcomes[outcome], count) for outcome, count in least.items() if outcomes[outcome] < count} == {}
    assert len(total(readings, "kinds")) > 100


def test_no_archive_takes_long(readings: list[dict[str, Any]]) -> None:
    """CPU time with that of the HDF5 reader: the clock would also count what else the machine does."""
    assert [reading["slowest"] for reading in readings if reading["slowest"][0] > LIMIT_S] == []


def test_no_archive_takes_much_memory(readings: list[dict[str, Any]]) -> None:
    if any(reading["peak_bytes"] is None for reading in readings):
        pytest.skip("how much memory a process had is known on Linux alone")
    assert [r for r in readings if r["peak_bytes"] + r["peak_of_children_bytes"] > LIMIT_BYTES] == []


def test_the_watch_sees_a_careless_reader() -> None:
    """The broken subject unpickles one archive, which makes a folder; every check above would have failed."""
    reading = finish(start("--careless"))
    (wrong,) = reading["wrong"]
    assert any(event.startswith("pickle.find_class") for event in wrong["seen"])
    assert any(event.startswith("os.mkdir") for event in wrong["seen"])
    assert wrong["left"] == ["CANARY"]
    assert reading["canary"]

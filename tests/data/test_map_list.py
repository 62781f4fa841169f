"""The list of maps in ``data/memmap``: complete after any order of maps, and never in the way of a map."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ptycho_torch.data.map_list import list_map


def make_map(maps: Path, name: str) -> Path:
    """Make what the list takes for a map."""
    (maps / name).mkdir(parents=True)
    (maps / name / "manifest.json").write_text("{}")
    return maps / name


def listed(maps: Path) -> dict[str, str]:
    """Return the list."""
    content: dict[str, str] = json.loads((maps / "manifest.json").read_text())["maps"]
    return content


def test_maps_made_at_the_same_time_are_all_listed_and_removed_ones_are_not(tmp_path: Path) -> None:
    names = [f"map-{number}" for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: list_map(make_map(tmp_path, name), Path(f"/scans/{name}.npz")), names))
    assert listed(tmp_path) == {name: f"/scans/{name}.npz" for name in names}
    (tmp_path / "map-3" / "manifest.json").unlink()
    list_map(tmp_path / "map-0", Path("/elsewhere.npz"))
    assert listed(tmp_path) == {
        name: "/elsewhere.npz" if name == "map-0" else f"/scans/{name}.npz" for name in names if name != "map-3"
    }


@pytest.mark.parametrize("damaged", ["", "[]", '{"maps": 3}', "\udcff", "[" * 100_000, "x" * 2**21])
def test_a_damaged_list_is_written_anew(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "manifest.json").write_text(damaged, errors="surrogatepass")
    list_map(make_map(tmp_path, "map"), Path("/a.npz"))
    assert listed(tmp_path) == {"map": "/a.npz"}


def test_a_list_that_cannot_be_written_does_not_stop_the_map(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (tmp_path / "manifest.json").mkdir()
    list_map(make_map(tmp_path, "map"), Path("/a.npz"))
    assert "not brought up to date" in caplog.text

"""Published holes of model and array files: each is refused by its clause, in little time and memory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import MappingProxyType

import pytest

from conformance.report import page
from ptycho_torch.contracts.contract import load_contract
from ptycho_torch.errors import PtychoError
from ptycho_torch.files import hdf5_files
from tests.fuzz.corpus import KIND, PAGES, ROWS, SECURITY, Row, with_table
from tests.fuzz.readers import READERS
from tests.support.html_pages import HOSTILE, check

LIMIT_S = 1.0
LIMIT_BYTES = 256 * 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_bytes(what: str) -> int:
    """Memory of this process in bytes, VmRSS now or VmHWM at most, or 0 where that is not known."""
    found = re.search(rf"{what}:\s+(\d+) kB", STATUS.read_text()) if STATUS.is_file() else None
    return 1024 * int(found[1]) if found else 0


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=pytest.mark.parity_clause(row.clause), id=f"{row.name}-{row.reader}-{k}")
        for k, row in enumerate(ROWS)
    ],
)
def test_a_published_hole_is_refused(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The process that reads HDF5 has this limit of its own.
    monkeypatch.setattr(hdf5_files, "MEMORY_BYTES", LIMIT_BYTES)
    monkeypatch.chdir(tmp_path)
    content = row.build()
    if CLEAR.is_file():
        CLEAR.write_text("5")
    before_bytes, before_s = memory_bytes("VmRSS"), sum(os.times()[:4])
    with pytest.raises(PtychoError) as caught:
        READERS[row.reader](content, tmp_path)
    used_s, used_bytes = sum(os.times()[:4]) - before_s, memory_bytes("VmHWM") - before_bytes
    message = str(caught.value)
    assert caught.value.clause == row.clause, message
    assert row.clause in message
    assert message.isprintable()
    assert 40 < len(message) < 2500
    assert "asks for more than" not in message
    assert not (tmp_path / "CANARY").exists()
    assert used_s <= LIMIT_S
    assert used_bytes <= LIMIT_BYTES


@pytest.mark.parametrize("name", [name for name, _ in PAGES])
def test_html_in_names_and_values_is_text(name: str) -> None:
    found = {"passed": False, "verdict": HOSTILE, "differences": [HOSTILE]}
    reader = check(page.render("certificate", title=HOSTILE, sections={"copy": HOSTILE}, found=found))
    assert HOSTILE in reader.text
    assert "img" not in reader.tags


def test_the_table_of_security_md_is_that_of_the_corpus() -> None:
    text = SECURITY.read_text(encoding="utf-8")
    assert text == with_table(text), "run python -m tests.fuzz.corpus"
    assert {row.clause for row in ROWS} <= load_contract().clauses.keys()


def test_holes_are_many_and_named() -> None:
    assert len(ROWS) >= 40
    named = [row.name for row in ROWS if row.name != KIND]
    assert all(re.fullmatch(r"CVE-20\d\d-\d{4,6}|GHSA(-\w{4}){3}|keras #\d+", name) for name in named)
    assert len(named) >= 40
    assert isinstance(READERS, MappingProxyType)

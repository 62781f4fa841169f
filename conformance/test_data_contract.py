"""The data contract: scans that the user names, and the tables of tensors against what the data path makes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from conformance.cases.scan import examined
from conformance.release.document import document
from conformance.spec.loader import check_schema
from ptycho_torch.config_params import DataSettings
from ptycho_torch.contracts.contract import DATA_FILE, Clause, load_contract, read_yaml, specs_dir

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

MODES, SCANS = 2, 2
SETTINGS = DataSettings(N=8, gridsize=2, K=5)


@pytest.mark.parity_scan
def test_scan_clause(parity_scan_clause: tuple[Path, str] | None) -> None:
    """One file keeps one clause of the data contract."""
    if parity_scan_clause is None:
        pytest.skip("no scan was named: pytest conformance --parity-scan SCAN.npz")
    path, clause = parity_scan_clause
    (finding,) = [finding for finding in examined(path).findings if finding.clause == clause]
    if finding.state == "not judged":
        pytest.skip(f"{clause} cannot be judged of {path}: an earlier clause is broken")
    assert finding.state != "broken", finding.text


def _need_tensordict() -> None:
    pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PtychoDataset:
    """Two small scans, one with two probe modes and bad pixels, as a mapped dataset."""
    _need_tensordict()
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

    folder, draw = tmp_path_factory.mktemp("scans"), np.random.default_rng(5)
    for number in range(SCANS):
        bad = np.zeros((8, 8), np.uint8)
        bad[0, number] = 1
        np.savez(
            folder / f"scan_{number}.npz",
            diff3d=draw.random((12, 8, 8), np.float32),
            xcoords=20 * draw.random(12),
            ycoords=20 * draw.random(12),
            probeGuess=draw.random((1 + number, 8, 8)) + 1j * draw.random((1 + number, 8, 8)),
            bad_pixels=bad,
        )
    return PtychoDataset(folder, data_dir=tmp_path_factory.mktemp("map"), settings=SETTINGS)


def _fields(*tables: str) -> list[Any]:
    contract = load_contract().tensors
    return [
        pytest.param(
            *(table, field),
            id=f"{field['clause']}-{table}.{field['name']}",
            marks=pytest.mark.parity_clause(field["clause"]),
        )
        for table in tables
        for field in contract[table]["fields"]
    ]


def _check(tensor: torch.Tensor, field: Mapping[str, Any], letters: Mapping[str, int]) -> None:
    shape = tuple(letters[letter] if letter in letters else int(letter) for letter in field["shape"].split())
    assert (tuple(tensor.shape), str(tensor.dtype)) == (shape, f"torch.{field['dtype']}")


@pytest.mark.parametrize(("table", "field"), _fields("grouped"))
def test_a_batch_has_the_fields_of_the_contract(dataset: PtychoDataset, table: str, field: Mapping[str, Any]) -> None:
    letters = {"B": 5, "C": 4, "N": 8, "M": MODES}
    tensor = getattr(dataset[[0, 3, 11, 12, 20]], field["name"])
    if field["name"] == "probe":  # One mode drops its axis; here one scan has two.
        field = {**field, "shape": "B C M N N"}
    _check(tensor, field, letters)


@pytest.mark.parametrize(("table", "field"), _fields("map_patterns", "map_scan", "map_groups", "map_experiments"))
def test_a_map_has_the_fields_of_the_contract(dataset: PtychoDataset, table: str, field: Mapping[str, Any]) -> None:
    letters = {"M": 24, "L": 24, "E": SCANS, "N": 8, "C": 4, "modes": MODES}
    _check(getattr(dataset.map, table.removeprefix("map_"))[field["name"]], field, letters)


@pytest.mark.parity_clause("MAP-01")
def test_a_map_has_no_other_fields(dataset: PtychoDataset) -> None:
    for table in ("patterns", "scan", "groups", "experiments"):
        specified = {field["name"] for field in load_contract().tensors[f"map_{table}"]["fields"]}
        assert set(getattr(dataset.map, table).keys()) == specified, table


@pytest.mark.parity_clause("SPEC")
def test_the_contract_follows_its_schema() -> None:
    check_schema(read_yaml(DATA_FILE), DATA_FILE)


@pytest.mark.parametrize(
    "clause",
    [
        pytest.param(clause, id=clause.id, marks=pytest.mark.parity_clause(clause.id))
        for clause in load_contract().clauses.values()
    ],
)
def test_clause_names_what_enforces_it(clause: Clause) -> None:
    module, name = clause.code.rsplit(".", 1)
    if module.endswith((".memory_map", ".dset_loader_pt_mmap")):
        _need_tensordict()
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parity_clause("SPEC")
def test_the_document_says_what_the_contract_says() -> None:
    """specs/data_contracts.md is written from data_contracts.yaml: python -m conformance document."""
    assert (specs_dir() / "data_contracts.md").read_text(encoding="utf-8") == document(load_contract())

"""The same file through the data paths of both sides: decision, groups, offsets, normalised input, scale."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conformance.judge.data_parity import DAMAGES, decide, differences, draw_damage, draw_scan, draw_settings
from conformance.oracle import data as oracle_data
from conformance.spec.divergences import load_divergences
from ptycho_torch.config_params import DataSettings

DRAWS = {"quick": 8, "full": 60, "study": 500}
DECISIONS = {"quick": 120, "full": 1000, "study": 10000}

pytestmark = pytest.mark.parity_clause("DATA-PATH")


def _shared() -> Path:
    """Return the folder of real scans and recordings, if the environment names one."""
    folder = Path(os.environ.get("PTYCHO_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"real scans and recorded groups are absent: {folder}; PTYCHO_SHARED names their folder")
    return folder


def test_data_path_is_the_reference_s(parity_tier: str, parity_notes: list[str], tmp_path: Path) -> None:
    """Drawn scans and arguments: groups index for index, offsets and normalised input to float32."""
    pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")
    for seed in range(DRAWS[parity_tier]):
        rng = np.random.default_rng(seed)
        M, N = int(rng.integers(12, 40)), 2 * int(rng.integers(4, 9))
        path = tmp_path / f"scan_{seed}.npz"
        np.savez(path, **draw_scan(rng, M=M, N=N))  # type: ignore[arg-type]
        settings = draw_settings(rng, M=M, N=N)
        found = differences(path, settings)
        assert not found, f"seed {seed}, {settings}: {'; '.join(found)}"
    parity_notes.append(f"data path: {DRAWS[parity_tier]} drawn scans, the reference's groups, offsets and input")


def test_real_scans_go_the_reference_s_way() -> None:
    """The same for real scans, where they are at hand."""
    pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")
    scan = _shared() / "data" / "siemens_star_n64.npz"
    for gridsize, n_groups, seed in ((1, 100, 3), (2, 320, 1), (3, 64, 2)):
        settings = DataSettings(
            N=64, gridsize=gridsize, K=gridsize**2 + 2, group_sampler="reference", n_groups=n_groups, group_seed=seed
        )
        found = differences(scan, settings)
        assert not found, "; ".join(found)


def test_the_oracle_makes_the_recorded_groups() -> None:
    """What the reference recorded of its groups, offsets and normalisation is what the oracle makes of the scan."""
    folder = _shared()
    with np.load(folder / "data" / "siemens_star_n64.npz", allow_pickle=False) as file:
        scan = oracle_data.read_scan({name: file[name] for name in file.files})
    with np.load(folder / "goldens" / "groups_1.npz", allow_pickle=False) as recorded:
        for number, case in enumerate(json.loads(str(recorded["cases"]))):
            indices = oracle_data.draw_groups(
                scan.positions_px,
                gridsize=case["gridsize"],
                K=case["K"],
                n_groups=case["nsamples"],
                seed=case["seed"],
                sequential=case.get("sequential_sampling", False),
                oversampling=case.get("enable_oversampling", False),
                pool_size=case.get("neighbor_pool_size"),
            )
            np.testing.assert_array_equal(indices, recorded[f"{number}/nn_indices"], err_msg=str(case))
            grouped = oracle_data.group(scan, indices)
            # The factor was read off normalised input, which is float32.
            np.testing.assert_allclose(grouped.factor, recorded[f"{number}/scale"], rtol=1e-7)
            np.testing.assert_allclose(grouped.offsets_px, recorded[f"{number}/coords_relative"], rtol=0, atol=1e-12)
            np.testing.assert_allclose(grouped.centres_px, recorded[f"{number}/coords_offsets"], rtol=1e-14)
    with np.load(folder / "archives" / "star_g2" / "prediction.npz", allow_pickle=False) as predicted:
        grouped = oracle_data.group(scan, predicted["nn_indices"])
        first = len(predicted["X"])
        np.testing.assert_allclose(grouped.amplitude[:first], predicted["X"], rtol=1e-6)
        np.testing.assert_allclose(grouped.offsets_px[:first, 0], predicted["offsets"][:, 0], rtol=0, atol=1e-6)


def test_decisions_about_files_differ_where_it_is_written_alone(
    parity_tier: str, parity_notes: list[str], tmp_path: Path
) -> None:
    """Both paths read a file, or both refuse it, but for what ``data_path`` of the findings lists."""
    _, allowed = load_divergences()
    seen: Counter[str] = Counter()
    for seed in range(DECISIONS[parity_tier]):
        rng = np.random.default_rng(seed)
        name, members = draw_damage(rng, draw_scan(rng, M=int(rng.integers(9, 13)), N=8))
        decision = decide(members, tmp_path / "scan.npz")
        seen[name] += 1
        if decision.agrees:
            continue
        if decision.ours:
            assert set(decision.ours) <= set(allowed.stricter), f"{name}: refused by {decision.ours}, read there"
        else:
            assert _reason_to_read(members) in allowed.looser, f"{name}: read here, refused there: {decision.theirs}"
    assert set(seen) == set(DAMAGES), set(DAMAGES) - set(seen)
    parity_notes.append(f"data path: {seen.total()} files of {len(seen)} kinds, decisions as written")


def _reason_to_read(members: dict[str, np.ndarray]) -> str:
    if "probeGuess" not in members:
        return "no_probe"
    if members["probeGuess"].ndim == 3:
        return "probe_modes"
    nominal = {"xcoords_start", "ycoords_start"} & set(members)
    return "" if nominal else "no_nominal_positions"


def test_photons_are_those_of_the_scan(tmp_path: Path) -> None:
    """The photon count is the mean of the grouped patterns, and no default (29)."""
    pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

    members = draw_scan(np.random.default_rng(0), M=12, N=8)
    path = tmp_path / "scan.npz"
    np.savez(path, **members)  # type: ignore[arg-type]
    dataset = PtychoDataset(path, data_dir=tmp_path / "map", settings=DataSettings(N=8, gridsize=1))
    counts = np.square(members["diff3d"].astype(np.float64)).sum(axis=(1, 2)).mean()
    assert dataset.derived().nphotons == pytest.approx(counts, rel=1e-6)

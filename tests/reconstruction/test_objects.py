"""From a module to the object of each scan and its files: probe, amplitude, centres, stitching, geometry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from conformance.checks.light import draw_wave, normalised
from conformance.checks.stitching import WEIGHTINGS, Placed, parts_of
from conformance.judge.agreement import FLOAT32, assert_agrees
from ptycho_torch import inference
from ptycho_torch.config_params import DataSettings, Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset
from ptycho_torch.reconstruction.products import Geometry
from ptycho_torch.reconstruction.reassembly import Stitched, Weighting
from ptycho_torch.train import PtychoPINN
from ptycho_torch.training import checkpoint
from tests.support.scan_scenes import Arrays, write_scans

N, FRAME_PX, BINS, BATCH, PROBE_SCALE = 64, 128, 2, 4, 3.0
COUNTS = (5, 6)
"""Patterns, and groups, of the two scans: batches of 4, 4 and 3 groups, the second with some of either scan."""

WAVELENGTHS_M, PIXELS_M, DISTANCE_M = (1.2e-10, 1.5e-10), (5e-5, 7.5e-5), 3.0
LOSSES = [3.0, 2.5, 2.25]
"""Of the epochs of the training that a reconstruction tells of."""


def draw_measured_scans() -> dict[str, Arrays]:
    scans: dict[str, Arrays] = {}
    for number, patterns in enumerate(COUNTS):
        # With these seeds the centres lie on their canvas as (y, x) too, so that only the object shows that mistake.
        rng = np.random.default_rng((12, 1157)[number])
        x, y = rng.uniform(40, 64, (patterns, 2)).T
        modes = draw_wave(rng, 2, FRAME_PX, FRAME_PX) * np.array([1.0, 0.6])[:, None, None]
        scans[f"scan_{number}"] = {
            "diff3d": rng.gamma(2.0, 3.0 * (1 + number), (patterns, FRAME_PX, FRAME_PX)).astype(np.float32),
            "xcoords": x,
            "ycoords": y,
            "probeGuess": modes.astype(np.complex64),
            "wavelength_m": np.array(WAVELENGTHS_M[number]),
            "detector_pixel_m": np.array(PIXELS_M[number]),
        }
    # One scan has a wrong distance, the other none, and the caller knows.
    scans["scan_0"]["detector_distance_m"] = np.array(7.0)
    return scans


def predicted(module: PtychoPINN, batch: PtychoBatch, probe: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return what the network of a module predicts for the scaled images of a batch."""
    amplitude = batch.images.numpy() * np.float32(module.scale)
    given = None if probe is None else torch.from_numpy(probe.astype(np.complex64))
    with torch.no_grad():
        prediction = module.network(torch.from_numpy(amplitude), batch.coords, given)
    return {name: getattr(prediction, name).numpy() for name in ("object", "amplitude")}


@dataclass(frozen=True)
class Trained:
    """Two scans on disk, their dataset, and a module that stands for a trained one.

    Attributes:
        root: folder.
        dataset: of both scans.
        module: with biases that are not zero.
        centres_px: (L, 2) mean position of each group.
        scans: (L,) number of the scan of each group.
        objects: (L, N, N) of each group as the whole network predicts it, in the batches of the Trainer.
    """

    root: Path
    dataset: PtychoDataset
    module: PtychoPINN
    centres_px: np.ndarray
    scans: np.ndarray
    objects: np.ndarray

    def stitched(self, weighting: Weighting, crop_px: int) -> list[Arrays]:
        """Return the object of each scan, with coverage, squared disagreement and origin."""
        groups = [self.scans == number for number in range(len(COUNTS))]
        return [WEIGHTINGS[weighting](Placed(self.objects[g], self.centres_px[g]), crop_px) for g in groups]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("objects")
    scans = write_scans(root / "scans", draw_measured_scans())
    settings = DataSettings(N=N, gridsize=2, K=3, detector_bin=BINS, group_seed=3)
    dataset = PtychoDataset(scans, data_dir=root / "map", settings=settings)
    chosen = {"n_filters_scale": 1, "probe_scale": PROBE_SCALE, "device": "cpu"}
    module = PtychoPINN.for_dataset(dataset, Settings().override(chosen))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in module.network.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    members = dataset.nn_indices.numpy().astype(np.int64)
    places_px = dataset.positions_px.numpy()[members]
    batches = [dataset[first : first + BATCH] for first in range(0, len(dataset), BATCH)]
    objects = np.concatenate([predicted(module, batch)["object"][:, 0] for batch in batches])
    return Trained(root, dataset, module, places_px.mean(axis=1), (members[:, 0] >= COUNTS[0]).astype(int), objects)


@pytest.mark.parity_clause("OBJECT-01", "exit_wave")
def test_a_module_starts_with_the_normalised_modes_of_the_first_scan(trained: Trained) -> None:
    modes = trained.dataset.probes.numpy().astype(np.complex128)
    found = {"probe": trained.module.network.probe.detach().numpy()}
    assert_agrees({"probe": normalised(modes[0], PROBE_SCALE)}, found, FLOAT32)
    assert trained.module.statistics["probe_modes"] == 2


@pytest.mark.parity_clause("OBJECT-01", "RUN-01", "BATCH-03", "exit_wave")
def test_a_module_predicts_with_the_probe_of_the_batch_or_its_own(trained: Trained) -> None:
    module, batch = trained.module, trained.dataset[np.array([1, 6])]
    with torch.no_grad():
        found = {
            "amplitude of a batch": module(*batch).numpy(),
            "amplitude without a probe": module(batch.images, batch.coords).numpy(),
        }
        module.predict = True
        found["object of a batch"] = module(*batch).numpy()
        found["object without a probe"] = module(batch.images, batch.coords).numpy()
        module.predict = False
    given = normalised(batch.probe.numpy().astype(np.complex128), PROBE_SCALE)
    lit, own = predicted(module, batch, given), predicted(module, batch)
    right = {
        "amplitude of a batch": lit["amplitude"],
        "amplitude without a probe": own["amplitude"],
        "object of a batch": own["object"],
        "object without a probe": own["object"],
    }
    assert_agrees(right, found, FLOAT32)


@pytest.mark.parity_clause("OBJECT-01", "STITCH-01")
@pytest.mark.parametrize(("weighting", "crop_px"), [("uniform", 20), ("smooth", N // 2)])
def test_objects_of_groups_become_the_object_of_their_scan(
    trained: Trained, weighting: Weighting, crop_px: int
) -> None:
    """With the square that belongs to the weighting where nobody gives one; the module stays in training."""
    results = inference.reconstruct(
        trained.module, trained.dataset, batch_size=BATCH, weighting=weighting, device="cpu", progress=False
    )
    found = parts_of(results)
    assert len(found) == len(COUNTS)
    for right, given in zip(trained.stitched(weighting, crop_px), found, strict=True):
        assert_agrees(right, given, FLOAT32)
    assert trained.module.training


# ---------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def _no_pictures(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, and let the module tell of a training."""
    monkeypatch.setattr(inference, "plot_reconstruction", lambda *_, **__: None)
    monkeypatch.setattr(inference, "write_images", lambda *_, **__: ())
    monkeypatch.setattr(trained.module, "history", {"train_loss": LOSSES})


def pixel_m(number: int) -> float:
    """Return λ·z / (N·p), p a pixel as it was binned."""
    return WAVELENGTHS_M[number] * DISTANCE_M / (N * BINS * PIXELS_M[number])


def content_of(result: inference.InferenceResult) -> tuple[Arrays, dict[str, Any]]:
    """Return what the files of a reconstruction hold, and their provenance."""
    with np.load(result.npz) as npz:
        found = dict(npz)
    provenance = json.loads(str(found.pop("provenance")))
    found["squared disagreement"] = np.square(found.pop("disagreement"), dtype=np.float64)
    if result.product is not None:
        with h5py.File(result.product) as product:
            found |= {
                "object of the product": product["object"][0],
                "probe of the product": product["probe"][:],
                "positions of the product": np.stack(
                    [product["probe_position_x_m"][:], product["probe_position_y_m"][:]], axis=1
                ),
                "pixels of the product": np.array(
                    [
                        product[what].attrs[f"pixel_{side}_m"]
                        for what in ("object", "probe")
                        for side in ("width", "height")
                    ]
                ),
                "distance": np.array(product.attrs["detector_object_distance_m"]),
                "photon energy": np.array(product.attrs["probe_energy_eV"]),
                "photons": np.array(product.attrs["probe_photon_count"]),
                "losses": product["loss_values"][:],
            }
    return found, provenance


def wanted(trained: Trained, number: int, parts: Arrays, losses: Sequence[float] | None) -> Arrays:
    """Return what the files of a scan should hold; losses of None: the pixel is unknown, and there is no product."""
    probe, positions = trained.dataset.probes[number].numpy(), trained.centres_px[trained.scans == number]
    found = parts | {"xcoords": positions[:, 0], "ycoords": positions[:, 1], "probe": probe}
    if losses is None:
        return found
    centre = parts["origin_px"] + np.array(parts["object"].shape[::-1]) / 2
    patterns_px = trained.dataset.positions_px.numpy()[trained.dataset.rows[number]]
    return found | {
        "pixel_size_m": np.array(pixel_m(number)),
        "object of the product": parts["object"],
        "probe of the product": probe,
        "positions of the product": (patterns_px - centre) * pixel_m(number),
        "pixels of the product": np.full(4, pixel_m(number)),
        "distance": np.array(DISTANCE_M),
        # E = h·c / λ
        "photon energy": np.array(6.62607015e-34 * 299792458 / 1.602176634e-19 / WAVELENGTHS_M[number]),
        "photons": np.array(trained.module.statistics["nphotons"]),
        "losses": np.array(losses),
    }


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parity_clause("OBJECT-01", "REC-01", "REC-02", "PRODUCT-01")
def test_objects_are_written_with_their_frame_and_a_product_where_the_pixel_is_known(trained: Trained) -> None:
    rng = np.random.default_rng(19)
    drawn: list[Arrays] = []
    # One is higher than wide, one wider than high.
    for shape in ((7, 11), (9, 5)):
        spread = rng.standard_normal(shape)
        drawn.append({
            "object": draw_wave(rng, *shape), "coverage": rng.uniform(0.5, 3, shape),
            "squared disagreement": spread**2, "origin_px": rng.uniform(-20, 20, 2),
        })  # fmt: skip
    stitched = {
        number: Stitched(
            torch.from_numpy(each["object"]),
            torch.from_numpy(each["coverage"]),
            torch.from_numpy(np.sqrt(each["squared disagreement"])),
            (float(each["origin_px"][0]), float(each["origin_px"][1])),
        )
        for number, each in enumerate(drawn)
    }
    results = inference.write_results(
        stitched,
        trained.module,
        trained.dataset,
        trained.root / "written",
        source=trained.root / "none.ckpt",
        geometries={1: Geometry(WAVELENGTHS_M[1], DISTANCE_M, BINS * PIXELS_M[1], N)},
        weighting="uniform",
        overwrite=True,
    )
    assert [result.npz.name for result in results] == ["scan_0.npz", "scan_1.npz"]
    assert [result.product and result.product.name for result in results] == [None, "scan_1.h5"]
    for number, (result, losses) in enumerate(zip(results, (None, LOSSES), strict=True)):
        found, provenance = content_of(result)
        assert_agrees(wanted(trained, number, drawn[number], losses), found, FLOAT32)
        assert (provenance["scan"], provenance["weighting"]) == (f"scan_{number}.npz", "uniform")


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parity_clause("OBJECT-01", "REC-01", "REC-02", "PRODUCT-01")
def test_a_checkpoint_reconstructs_scans_with_what_the_caller_asks_for(trained: Trained) -> None:
    """Weighting, square and distance; pixels of the detector are those after binning."""
    module, path = trained.module, trained.root / "trained.ckpt"
    checkpoint.write_checkpoint(
        path, module.settings, module.network.settings, module.statistics, module.network.state_dict(), overwrite=True
    )
    results = inference.infer(
        path,
        trained.root / "scans",
        output_dir=trained.root / "objects",
        batch_size=BATCH,
        weighting="uniform",
        crop_px=24,
        device="cpu",
        progress=False,
        overwrite=True,
        detector_distance_m=DISTANCE_M,
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(results) == len(COUNTS)
    for number, (result, parts) in enumerate(zip(results, trained.stitched("uniform", 24), strict=True)):
        found, provenance = content_of(result)
        # The checkpoint tells of no epochs.
        assert_agrees(wanted(trained, number, parts, []), found, FLOAT32)
        told = (provenance["scan"], provenance["weighting"], provenance["checkpoint_sha256"])
        assert told == (f"scan_{number}.npz", "uniform", digest)

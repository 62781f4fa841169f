"""A module as its users call it, and its checkpoint: amplitude, objects, and the files of a reconstruction."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.step import FLOAT64, Outcome, Step, StepBench
from conformance.steps_light import normalised
from conformance.steps_objects import (
    BATCH,
    BINS,
    CROPS_PX,
    PIXELS_M,
    PROBE_SCALE,
    SCAN_DISTANCE_M,
    WAVELENGTHS_M,
    N,
    Trained,
    predicted,
)
from conformance.steps_scans import FLOAT32
from conformance.steps_stitching import Parts, smooth, uniform

if TYPE_CHECKING:
    from ptycho_torch.inference import InferenceResult
    from ptycho_torch.train import PtychoPINN

CHOSEN_CROP_PX, DISTANCE_M = 24, 3.0
"""What the caller asks for."""


def _module(bench: StepBench) -> Outcome:
    """Call a module with a batch of both scans, with images and offsets alone, and for objects either way."""
    import torch

    trained = bench.once(Trained)
    module, batch = trained.module, trained.dataset[np.array([1, 6])]
    images, given = batch.images.numpy(), batch.probe.numpy().astype(np.complex128)
    scaled = images * np.float32(module.scale)
    with torch.no_grad():
        found = {
            "amplitude of a batch": module(*batch).numpy(),
            "amplitude with the network's probe": module(batch.images, batch.coords).numpy(),
        }
        module.predict = True
        found["object of a batch"] = module(*batch).numpy()
        found["object without a probe"] = module(batch.images, batch.coords).numpy()
        module.predict = False
    right = normalised(given, PROBE_SCALE)

    def said(amplitude: np.ndarray = scaled, probe: np.ndarray | None = right) -> dict[str, np.ndarray]:
        lit, own = predicted(module, amplitude, batch, probe), predicted(module, amplitude, batch)
        return {
            "amplitude of a batch": lit["amplitude"],
            "amplitude with the network's probe": own["amplitude"],
            "object of a batch": own["object"],
            "object without a probe": own["object"],
        }

    def mistakes() -> Iterator[Hypothesis]:
        for name, probe in (
            ("probe of the batch not normalised", given),
            ("every mode normalised by itself", normalised(given, PROBE_SCALE, np.abs(given))),
            ("mean over modes for their sum", np.sqrt(2) * right),
            ("probe of another scan", right[::-1]),
            ("the network's probe for that of the batch", None),
        ):
            yield Hypothesis(name, said(probe=probe))
        yield Hypothesis("input not scaled", said(images))
        yield Hypothesis("input scaled twice", said(scaled * np.float32(module.scale)))

    return Outcome(said(), found, FLOAT64, mistakes)


def _written(result: InferenceResult) -> Parts:
    """Return what the files of a reconstruction say."""
    import h5py

    with np.load(result.npz) as npz:
        found = dict(npz)
    found["squared disagreement"] = np.square(found.pop("disagreement"), dtype=np.float64)
    if result.product is None:
        return found
    with h5py.File(result.product) as product:
        found["object of the product"] = product["object"][0]
        found["probe of the product"] = product["probe"][:]
        found["positions of the product"] = np.stack(
            [product["probe_position_x_m"][:], product["probe_position_y_m"][:]], axis=1
        )
        sizes = [product[name].attrs[f"pixel_{side}_m"] for name in ("object", "probe") for side in ("width", "height")]
        found["pixels of the product"] = np.array(sizes)
        found["distance"] = np.array(product.attrs["detector_object_distance_m"])
        found["photon energy"] = np.array(product.attrs["probe_energy_eV"])
        found["photons"] = np.array(product.attrs["probe_photon_count"])
        found["losses"] = product["loss_values"][:]
    return found


def _numbered(files: Sequence[Parts]) -> Parts:
    return {f"{name} {number}": each for number, parts in enumerate(files) for name, each in parts.items()}


def _wanted(trained: Trained, number: int, parts: Parts, pixel_m: float | None) -> Parts:
    """Return what the files of a scan should say; without the size of a pixel there is no product."""
    probe, positions = trained.dataset.probes[number].numpy(), trained.places_px.mean(axis=1)[trained.scans == number]
    wanted = parts | {"xcoords": positions[:, 0], "ycoords": positions[:, 1], "probe": probe}
    if pixel_m is None:
        return wanted
    centre = parts["origin_px"] + np.array(parts["object"].shape[::-1]) / 2
    every = trained.dataset.positions_px.numpy()[trained.dataset.rows[number]]
    return wanted | {
        "pixel_size_m": np.array(pixel_m),
        "object of the product": parts["object"],
        "probe of the product": probe,
        "positions of the product": (every - centre) * pixel_m,
        "pixels of the product": np.full(4, pixel_m),
        "distance": np.array(DISTANCE_M),
        # E = h·c / λ
        "photon energy": np.array(6.62607015e-34 * 299792458 / 1.602176634e-19 / WAVELENGTHS_M[number]),
        "photons": np.array(trained.module.statistics["nphotons"]),
        "losses": np.array(LOSSES),
    }


LOSSES = (3.0, 2.5, 2.25)
"""Of the epochs of the training that is told of."""


@contextlib.contextmanager
def _without_pictures(module: PtychoPINN) -> Iterator[None]:
    """Draw nothing: a picture is no number. The module tells of a training."""
    from ptycho_torch import inference

    with (
        mock.patch.object(inference, "plot_reconstruction"),
        mock.patch.object(inference, "write_images", return_value=()),
        mock.patch.object(module, "history", {"train_loss": list(LOSSES)}),
    ):
        yield


def _pixel_m(number: int, bins: int = BINS, distance_m: float = DISTANCE_M) -> float:
    """Return λ·z / (N·p), p a pixel as it was binned."""
    return WAVELENGTHS_M[number] * distance_m / (N * bins * PIXELS_M[number])


def _drawn_parts() -> list[Parts]:
    """Draw what was stitched of two scans, higher than wide and wider than high."""
    rng = np.random.default_rng(19)
    drawn: list[Parts] = []
    for shape in ((7, 11), (9, 5)):
        real, imaginary, spread = rng.standard_normal((3, *shape))
        cover, origin = rng.uniform(0.5, 3, shape), rng.uniform(-20, 20, 2)
        names = ("object", "coverage", "squared disagreement", "origin_px")
        drawn.append(dict(zip(names, (real + 1j * imaginary, cover, spread**2, origin), strict=True)))
    return drawn


def _write(bench: StepBench) -> Outcome:
    """Write two objects that are not square, one of them of a size in metres."""
    import torch

    from ptycho_torch.inference import write_results
    from ptycho_torch.products import Geometry
    from ptycho_torch.reassembly import Stitched

    trained = bench.once(Trained)
    drawn = _drawn_parts()
    stitched = {
        number: Stitched(
            torch.from_numpy(each["object"]),
            torch.from_numpy(each["coverage"]),
            torch.from_numpy(np.sqrt(each["squared disagreement"])),
            (float(each["origin_px"][0]), float(each["origin_px"][1])),
        )
        for number, each in enumerate(drawn)
    }
    geometry = Geometry(WAVELENGTHS_M[1], DISTANCE_M, BINS * PIXELS_M[1], N)
    with _without_pictures(trained.module):
        results = write_results(
            stitched,
            trained.module,
            trained.dataset,
            trained.root / "written",
            source=trained.root / "none.ckpt",
            geometries={1: geometry},
            weighting="uniform",
            overwrite=True,
        )
    found = _numbered([_written(result) for result in results])
    told = [json.loads(str(found.pop(f"provenance {number}"))) for number in (0, 1)]
    sizes_m = (None, _pixel_m(1))
    right = [_wanted(trained, number, parts, sizes_m[number]) for number, parts in enumerate(drawn)]
    expected = _numbered(right) | {
        "files": np.array(["scan_0.npz", "scan_1.npz", "scan_1.h5"]),
        "told of": np.array(["scan_0.npz uniform", "scan_1.npz uniform"]),
    }
    paths = [*(result.npz for result in results), *(result.product for result in results if result.product)]
    found["files"] = np.array([path.name for path in paths])
    found["told of"] = np.array([f"{each['scan']} {each['weighting']}" for each in told])

    def mistakes() -> Iterator[Hypothesis]:
        positions = trained.dataset.positions_px.numpy()[trained.dataset.rows[1]]
        origin, (height, width) = drawn[1]["origin_px"], drawn[1]["object"].shape
        for name, centre in {
            "positions of the product from the corner of the object": origin,
            "height and width of the object exchanged": origin + np.array([height, width]) / 2,
            "origin of the object left out": np.array([width, height]) / 2,
        }.items():
            yield Hypothesis(name, {"positions of the product 1": (positions - centre) * sizes_m[1]})
        exchanged = {f"origin_px {number}": each["origin_px"][::-1] for number, each in enumerate(drawn)}
        yield Hypothesis("x and y of the origin exchanged", exchanged)
        probes = {
            f"{name} {number}": trained.dataset.probes[1 - number].numpy()
            for name in ("probe", "probe of the product")
            for number in (0, 1)
        }
        yield Hypothesis("probe of another scan", {name: each for name, each in probes.items() if name in expected})

    return Outcome(expected, found, FLOAT32, mistakes)


def _infer(bench: StepBench) -> Outcome:
    """Reconstruct two scans with a checkpoint, and read the files."""
    from ptycho_torch import checkpoint, inference

    trained = bench.once(Trained)
    module, path = trained.module, trained.root / "trained.ckpt"
    checkpoint.write_checkpoint(
        path, module.settings, module.network.settings, module.statistics, module.network.state_dict(), overwrite=True
    )
    with _without_pictures(module):
        results = inference.infer(
            path,
            trained.root / "scans",
            output_dir=trained.root / "objects",
            batch_size=BATCH,
            weighting="uniform",
            crop_px=CHOSEN_CROP_PX,
            device="cpu",
            progress=False,
            overwrite=True,
            detector_distance_m=DISTANCE_M,
        )
    scans = trained.placed(trained.objects(), trained.places_px.mean(axis=1))

    def files(
        pixel_m: Callable[[int], float] = _pixel_m,
        stitch: Callable[..., Parts] = uniform,
        crop_px: int = CHOSEN_CROP_PX,
    ) -> Parts:
        """Return what the files should say; the checkpoint knows of no epochs."""
        parts = [
            _wanted(trained, number, stitch(scan, crop_px), pixel_m(number)) | {"losses": np.zeros(0)}
            for number, scan in enumerate(scans)
        ]
        return _numbered(parts)

    found = _numbered([_written(result) for result in results])
    told = [json.loads(str(found.pop(f"provenance {number}"))) for number in (0, 1)]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def telling(weighting: str) -> Parts:
        return {"told of": np.array([f"scan_{number}.npz {weighting} {digest}" for number in (0, 1)])}

    expected = files() | telling("uniform")
    found["told of"] = np.array([f"{each['scan']} {each['weighting']} {each['checkpoint_sha256']}" for each in told])

    def mistakes() -> Iterator[Hypothesis]:
        yield Hypothesis("pixels of the detector before binning", files(lambda number: _pixel_m(number, bins=1)))
        yield Hypothesis("frame before binning", files(lambda number: _pixel_m(number, bins=BINS**2)))
        first = files(lambda number: _pixel_m(number, distance_m=SCAN_DISTANCE_M if number == 0 else DISTANCE_M))
        yield Hypothesis(
            "distance of the scan for the one that was given", first | {"distance 0": np.array(SCAN_DISTANCE_M)}
        )
        yield Hypothesis("the square that was asked for ignored", files(crop_px=CROPS_PX["uniform"]))
        yield Hypothesis("the weighting that was asked for ignored", files(stitch=smooth) | telling("smooth"))

    return Outcome(expected, found, FLOAT32, mistakes)


PREDICTING: tuple[Step, ...] = (
    Step(
        "optimiser.predictions", ("OBJECT-01", "RUN-01", "BATCH-03", "exit_wave"), _module, ("lightning", "tensordict")
    ),
)
_NEEDS = ("lightning", "tensordict", "h5py")
WRITING: tuple[Step, ...] = (Step("forward.written", ("OBJECT-01", "REC-01", "REC-02", "PRODUCT-01"), _write, _NEEDS),)
INFERRING: tuple[Step, ...] = (
    Step("optimiser.infer", ("OBJECT-01", "REC-01", "REC-02", "PRODUCT-01"), _infer, _NEEDS),
)

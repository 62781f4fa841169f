"""Seeded faults of light, of what is known of an object, and of the way from a module to whole objects."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conformance.seeding import Body, Fault, after, argument, instead, of_area, with_named
from ptycho_torch import helper, inference, losses, model, probe
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.products import Reconstruction
from ptycho_torch.reassembly import Stitcher
from ptycho_torch.train import PtychoPINN


def _mean_over_modes(original: Body) -> Body:
    def wrong(modes: Tensor, probe_scale: float = 4.0) -> Tensor:
        normal: Tensor = original(modes, probe_scale)
        return normal * modes.shape[-3] ** 0.5 if modes.ndim > 2 else normal

    return wrong


def _disk_about_a_pixel(N: int) -> Tensor:
    position = torch.arange(N, dtype=torch.float64) - N / 2
    return (torch.hypot(position[:, None], position) < N // 4).double()


def _with_edges_repeated(images: Tensor, sigma_px: float) -> Tensor:
    weights = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) ** 2) / (2 * sigma_px**2))
    side, centre, _ = (weights / weights.sum()).tolist()
    for axis in (-2, -1):
        size = images.shape[axis]
        first, last = images.narrow(axis, 0, 1), images.narrow(axis, size - 1, 1)
        wide = torch.cat([first, images, last], dim=axis)
        images = side * (wide.narrow(axis, 0, size) + wide.narrow(axis, 2, size)) + centre * images
    return images


def _without_shift(exit_wave: Tensor) -> Tensor:
    N = exit_wave.shape[-1]
    intensity: Tensor = torch.fft.fft2(exit_wave).abs().square().sum(dim=2) / N**2
    return intensity.sqrt()


def _real_part_alone(images: Tensor) -> Tensor:
    parts = images.real
    return parts.diff(dim=-2).square().sum() + parts.diff(dim=-1).square().sum()


def _own_probe(original: Body) -> Body:
    return lambda self, images, coords, probe=None, scale=None: original(self, images, coords)


def _unscaled(self: PtychoPINN, images: Tensor, coords: Tensor, *_: Any) -> Tensor:
    return self.network.reconstruct(images.to(self._dtype), coords.to(self._dtype))


def _predicting(change: Callable[[Any, Any], dict[str, Tensor]]) -> Callable[[Body], Body]:
    """Change what a module says of a batch; the replacement sees that, and the batch."""

    def build(original: Body) -> Body:
        def wrong(self: PtychoPINN, batch: Any, batch_idx: int = 0) -> Any:
            said = original(self, batch, batch_idx)
            return said._replace(**change(said, batch))

        return wrong

    return build


def _not_binned(geometries: dict[int, Any]) -> dict[int, Any]:
    return {
        number: dataclasses.replace(each, detector_pixel_m=each.detector_pixel_m / 2)
        for number, each in geometries.items()
    }


def _half(reconstruction: Reconstruction) -> np.ndarray:
    """Return (x, y) of half of the object."""
    height, width = reconstruction.object.shape
    return np.array([width, height]) / 2


_light, _optimiser = of_area("forward"), of_area("optimiser")


LIGHT: tuple[Fault, ...] = (
    _light(
        "modes normalised with their mean",
        "probe",
        probe,
        "normalise_probe",
        _mean_over_modes,
        "mean over modes for their sum",
    ),
    _light("disk about a pixel", "probe", probe, "disk_mask", instead(_disk_about_a_pixel), "disk half a pixel off"),
    _light(
        "σ squared in the blur",
        "illuminate",
        helper,
        "smooth",
        argument(1, lambda sigma_px: sigma_px**2),
        "σ squared for σ",
    ),
    _light(
        "edge pixels repeated in the blur",
        "illuminate",
        helper,
        "smooth",
        instead(_with_edges_repeated),
        "edge pixel repeated",
    ),
    _light("zero frequency in the corner", "diffract", helper, "diffract", instead(_without_shift), "missing fftshift"),
    _light("physics under autocast", "autocast", model, "_without_autocast", instead(contextlib.nullcontext), None),
    _light(
        "known object moved the wrong way",
        "target",
        helper,
        "target_object",
        argument(1, torch.neg),
        "sign of offsets",
    ),
    _light(
        "known object cut with x for y",
        "target",
        helper,
        "cut_patches",
        argument(1, lambda positions_px: positions_px.flip(1)),
        "swapped x/y",
    ),
    _light(
        "total variation of the real part",
        "target",
        losses,
        "total_variation",
        instead(_real_part_alone),
        "real part alone",
    ),
    _light(
        "known object not looked at",
        "target",
        losses,
        "object_mae",
        after(lambda loss: 0 * loss),
        "known object ignored",
    ),
    _light(
        "origin of a uniform canvas about 0",
        "stitch",
        Stitcher,
        "origin_px",
        lambda right: property(
            lambda self: tuple(each - float(mean) for each, mean in zip(right.fget(self), self._anchor, strict=True))
        ),
        "origin without the mean position",
    ),
    Fault(
        "padding on one side of the canvas",
        "configuration",
        "configuration.geometry",
        NetworkSettings,
        "canvas_px",
        instead(property(lambda self: self.N + self.padding_px)),
        "padding on one side alone",
    ),
)
"""Faults of probe, blur, diffraction, known objects and canvases."""

OBJECTS: tuple[Fault, ...] = (
    _light(
        "objects of an input that is not scaled",
        "reconstruct",
        PtychoPINN,
        "forward_predict",
        instead(_unscaled),
        "input not scaled",
    ),
    _light(
        "centres of groups as (y, x)",
        "reconstruct",
        PtychoPINN,
        "predict_step",
        _predicting(lambda said, batch: {"centres_px": said.centres_px.flip(-1)}),
        "swapped x/y of the centres",
    ),
    _light(
        "objects at the first pattern of their group",
        "reconstruct",
        PtychoPINN,
        "predict_step",
        _predicting(lambda said, batch: {"centres_px": said.centres_px - batch.coords[:, 0, 0].double()}),
        None,
    ),
    _light(
        "every object in that of the first scan",
        "reconstruct",
        PtychoPINN,
        "predict_step",
        _predicting(lambda said, batch: {"experiment_ids": 0 * said.experiment_ids}),
        None,
    ),
    _light(
        "square of smooth weights for uniform ones",
        "reconstruct",
        inference,
        "REFERENCE_CROP_PX",
        instead(32),
        "square of the other weighting",
    ),
    _light(
        "weighting not handed on",
        "reconstruct",
        inference,
        "ExperimentStitcher",
        argument(3, lambda weighting: "smooth"),
        "weighting ignored",
    ),
    _light(
        "last batch of groups left out",
        "reconstruct",
        inference,
        "TensorDictDataLoader",
        with_named(drop_last=True),
        "smaller batch left out",
    ),
    _light(
        "positions of a product from the corner",
        "written",
        inference,
        "write_product",
        lambda original: (
            lambda path, reconstruction, *given, positions_px, **named: original(
                path, reconstruction, *given, positions_px=positions_px + _half(reconstruction), **named
            )
        ),
        "from the corner of the object",
    ),
    _optimiser(
        "the network's probe for every batch",
        "predictions",
        PtychoPINN,
        "forward",
        _own_probe,
        "the network's probe for that of the batch",
    ),
    _optimiser(
        "pixels of a detector that is not binned",
        "infer",
        inference,
        "geometries_of",
        after(_not_binned),
        "pixels of the detector before binning",
    ),
    _light(
        "weighting of the caller ignored",
        "reconstruct",
        inference,
        "reconstruct",
        with_named(weighting="smooth"),
        "weighting ignored",
    ),
    _optimiser(
        "square not handed on",
        "infer",
        inference,
        "reconstruct",
        with_named(crop_px=None),
        "the square that was asked for ignored",
    ),
    _optimiser(
        "weighting not handed on to the files",
        "infer",
        inference,
        "infer",
        with_named(weighting="smooth"),
        "the weighting that was asked for ignored",
    ),
)
"""Faults between a module and whole objects."""

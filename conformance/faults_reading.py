"""Seeded faults of files as they are read and converted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from conformance.seeding import Body, Fault, after, of_area
from ptycho_torch import convert, raw_scan, scan
from ptycho_torch.npz import NpzFile


def _read_in_c_order(original: Body) -> Body:
    def wrong(self: NpzFile, key: str) -> np.ndarray:
        array: np.ndarray = original(self, key)
        return array.reshape(-1, order="F").reshape(array.shape) if self.header(key).fortran_order else array

    return wrong


def _streamed_in_c_order(original: Body) -> Body:
    def wrong(self: NpzFile, key: str, header: Any, rows: int, depth: int) -> Iterator[np.ndarray]:
        return self._rows(key, header, rows, depth)

    return wrong


def _nominal_exchanged(original: Body) -> Body:
    def wrong(self: Any, npz: Any, headers: Any, names: tuple[str, str], **named: Any) -> Any:
        return original(self, npz, headers, names[::-1] if names[0].endswith("_start") else names, **named)

    return wrong


_data = of_area("data")

READING: tuple[Fault, ...] = (
    _data("Fortran order of small members", "members", NpzFile, "read", _read_in_c_order, "Fortran order"),
    _data("Fortran order of streams", "members", NpzFile, "_fortran_rows", _streamed_in_c_order, "Fortran order"),
    _data(
        "CRC-32 of members left out",
        "members",
        NpzFile,
        "digest",
        after(lambda found: tuple(dataclasses.replace(each, crc32=0) for each in found)),
        None,
    ),
    _data(
        "nominal positions as (y, x)",
        "scan_file",
        scan._Examiner,
        "_positions",
        _nominal_exchanged,
        "nominal positions",
    ),
    _data(
        "bad pixels for good ones",
        "scan_file",
        scan._Examiner,
        "_good_pixels",
        after(lambda good: None if good is None else ~good),
        "mask inverted",
    ),
    _data("stored probe conjugated", "scan_file", scan, "probe_modes", after(np.conj), "conjugation"),
    _data(
        "object pixel of the detector pixel alone",
        "scan_file",
        scan,
        "object_pixel_m",
        lambda original: lambda *lengths: original(*lengths[:-1], 1),
        "whole frame",
    ),
)


# -------------------------------------------------------------------------------------------------- converting


def _columns_for_rows(original: Body) -> Body:
    def wrong(self: raw_scan.Stack, numbers: np.ndarray) -> Any:
        return original(dataclasses.replace(self, columns_first=False), numbers)

    return wrong


CONVERTING: tuple[Fault, ...] = (
    _data(
        "columns for rows of patterns in Fortran order",
        "convert",
        raw_scan.Stack,
        "_oriented",
        _columns_for_rows,
        "Fortran order of the patterns",
    ),
    _data(
        "converted positions of the whole frame",
        "convert",
        convert.Frames,
        "positions",
        lambda original: lambda self, positions_px, scale: self.oriented(positions_px, scale),
        "pixels of the whole frame",
    ),
    _data(
        "converted probe conjugated",
        "convert",
        convert.Frames,
        "probe",
        after(np.conj),
        "conjugation",
    ),
    _data(
        "detector pixel not widened",
        "convert",
        convert,
        "_small",
        lambda original: lambda source, options, *rest: original(source, _once_binned(options), *rest),
        "not widened",
    ),
)


def _once_binned(options: Any) -> Any:
    return type(options)(**{**vars(options), "bin": 1})


OF_FILES: tuple[Fault, ...] = (*READING, *CONVERTING)

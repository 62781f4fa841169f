"""Files with any mix of what beamlines do: an import gives the known scan, or refuses and names the feature.

``PTYCHO_IMPORTS=1000`` tries so many files in place of a few.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.errors import PtychoError
from tests.support.beamline_files import (
    DISTANCE_M,
    ELECTRONVOLT_J,
    ENERGY_J,
    PIXEL_M,
    WAVELENGTH_M,
    Content,
    Known,
    With,
    assert_is,
    convert,
    known_scan,
    write_hdf5,
)

h5py = pytest.importorskip("h5py")
hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

FILES = int(os.environ.get("PTYCHO_IMPORTS", "25"))
LENGTHS = {"": 1.0, "m": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "micron": 1e-6, "nm": 1e-9, "Angstrom": 1e-10}
ENERGIES = {"": 1.0, "J": 1.0, "eV": ELECTRONVOLT_J, "keV": 1e3 * ELECTRONVOLT_J, "MeV": 1e6 * ELECTRONVOLT_J}
TYPES = ("u1", "<u2", ">u2", "<u4", ">u4", "<u8", "<i2", "<i4", ">i4", "<f4", ">f4", "<f8")
BASES = (
    ((0, 1, 0), (1, 0, 0)), ((0, -1, 0), (-1, 0, 0)), ((1, 0, 0), (0, 1, 0)), ((0, -1, 0), (1, 0, 0)),
    ((0.6, 0.8, 0), (0.8, -0.6, 0)), ((0, 0.8, 0.6), (1, 0, 0)),
)  # fmt: skip
PLACES = {
    "cxi": ("/entry_1/instrument_1/detector_1", "/entry_1/sample_1/geometry_1", "/entry_1/instrument_1/source_1"),
    "nexus": ("/entry/instrument/detector", "/entry/sample", "/entry/instrument/beam"),
}
REFUSED = {
    "unit": "steps",
    "energy": "wavelength",
    "skew": "right angle",
    "folder": "another folder",
    "missing": "which is not there",
    "negative": "--clip-negative",
    "over": "--saturated",
    "positions": "--select",
    "nan": "--drop-nan-positions",
    "mask": "hide",
    "filter": "filter 32999",
}
"""Features that an import refuses → words of the message."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What a strategy has decided: the file, the options, and what must come out."""

    known: Known = dataclasses.field(repr=False)
    content: Content = dataclasses.field(repr=False)
    arguments: tuple[str, ...]
    bad: np.ndarray | None = dataclasses.field(repr=False)
    probe: np.ndarray | None = dataclasses.field(repr=False)
    storage: str
    user_block: int
    refused: str | None

    def describe(self) -> str:
        """Return types, shapes and units of the datasets, for a report."""
        lines = [repr(self)]
        for name, value in self.content.items():
            array = np.asarray(value.data if isinstance(value, With) else value)
            lines.append(f"{name} {array.dtype} {array.shape} {getattr(value, 'attributes', '')}")
        return "\n".join(lines)


@st.composite
def files(draw: Any) -> Written:
    """Draw a file with any mix of features, one of which may have to be refused."""
    rows, columns, seed = draw(st.integers(2, 4)), draw(st.integers(2, 4)), draw(st.integers(0, 99))
    known = known_scan(rows, columns, N=draw(st.sampled_from((12, 16))), seed=seed)
    refused = draw(st.none() | st.sampled_from(sorted(REFUSED)))
    detector, sample, source = PLACES[draw(st.sampled_from(sorted(PLACES)))]
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    if dtype.itemsize == 1:
        known = dataclasses.replace(known, counts=np.minimum(known.counts, 200))
    if refused in ("negative", "over"):
        dtype = np.dtype("<f4" if refused == "negative" else "<u2")
    M, N = known.counts.shape[:2]
    data, bad = known.counts.astype(dtype), None
    arguments: list[str] = []
    content: Content = {}

    def length(value: Any) -> With:
        unit = draw(st.sampled_from(sorted(LENGTHS)))
        return With(value / LENGTHS[unit], {"units": unit} if unit else {})

    # Values and masks.
    dead = draw(st.booleans()) and refused not in ("negative", "over", "mask")
    if dead:
        bad = np.zeros((N, N), bool)
        bad[draw(st.integers(0, 3)), : draw(st.integers(1, N))] = True
        top = {"u": np.iinfo(dtype).max if dtype.kind == "u" else 0, "i": -1, "f": np.nan}[dtype.kind]
        data[:, bad] = top
    mask = draw(st.sampled_from((None, "mask", "pixel_mask")))
    if refused == "mask":
        mask = "mask"
    if mask is not None:
        field = np.zeros((N, N), np.uint32)
        remark = 0x1000 if mask == "mask" else 1 << 18
        field[N // 2 :] |= np.uint32(remark)
        hot = (draw(st.integers(0, N - 1)), N - 1)
        field[hot] |= np.uint32(1 << draw(st.integers(0, 4)))
        if refused == "mask":
            field[N // 2 - 2 : N // 2 + 2, N // 2 - 2 : N // 2 + 2] |= 1
        content[f"{detector}/{mask}"] = field
        bad = (field & ~np.uint32(remark) != 0) | (bad if bad is not None else False)
    if refused == "negative":
        data[-1, 1, 1] = -3
    if refused == "over":
        data[0, 2, 2] = 65535
    dark = draw(st.booleans()) and not dead and refused not in ("negative", "over") and dtype.itemsize > 1
    if dark:
        level = np.arange(N * N).reshape(N, N) % 5
        data = (data + level).astype(dtype)
        content[f"{detector}/data_dark"] = level if draw(st.booleans()) else np.stack([level, level])
    probe = known.probe[: draw(st.integers(1, 3))]
    how = draw(st.sampled_from((None, "first", "last", "one", "opr", "double")))
    if how is not None:
        stored = {
            "first": probe, "last": probe.transpose(1, 2, 0), "one": probe[None],
            "opr": np.stack([probe, 0.5 * probe]), "double": probe.astype(np.complex128),
        }[how]  # fmt: skip
        content[f"{source}/illumination"] = stored
    # Geometry and places.
    basis = np.array(draw(st.none() | st.sampled_from(BASES)) or BASES[0])
    laboratory = known.translation_m[:, :1] * basis[1] + known.translation_m[:, 1:2] * basis[0]
    if not np.array_equal(basis, BASES[0]):
        vectors = PIXEL_M * np.array([basis[0], basis[1] + (0.3 if refused == "skew" else 0.0) * basis[0]])
        content[f"{detector}/basis_vectors"] = vectors if draw(st.booleans()) else vectors.T
    elif refused == "skew":
        content[f"{detector}/basis_vectors"] = PIXEL_M * np.array([[0, 1, 0], [1, 0.3, 0]])
    if refused == "nan":
        laboratory[0] = np.nan
    flat = bool((basis[:, 2] == 0).all())
    if flat and draw(st.booleans()):
        x, y = laboratory[:, 0], laboratory[:, 1]
        content[f"{sample}/x"], content[f"{sample}/y"] = length(x), length(y)
    else:
        places = laboratory[:, : 2 if flat and draw(st.booleans()) else 3]
        if draw(st.booleans()) and M > 3:
            places = places.T
        content[f"{sample}/translation"] = length(places)
    content[f"{detector}/distance"] = length(np.full(draw(st.sampled_from(((), (1,), (1, 1)))), DISTANCE_M))
    for name in "xy":
        content[f"{detector}/{name}_pixel_size"] = length(PIXEL_M)
    energy = draw(st.booleans())
    unit = draw(st.sampled_from(sorted(ENERGIES)))
    if energy or refused == "energy":
        value = ENERGY_J / ENERGIES[unit] * (1.1 if refused == "energy" else 1.0)
        content[f"{source}/energy"] = With(value, {"units": unit} if unit else {})
    if not energy or refused == "energy":
        content[f"{source}/wavelength"] = length(WAVELENGTH_M)
    if refused == "unit":
        content[f"{detector}/distance"] = With(DISTANCE_M, {"units": "steps"})
    # Frames, and how they lie in files.
    if draw(st.booleans()) and not dead and mask is None and refused not in ("negative", "over", "mask"):
        data = np.fft.ifftshift(data, axes=(1, 2))
        if dark:
            content[f"{detector}/data_dark"] = np.fft.ifftshift(content[f"{detector}/data_dark"], axes=(-2, -1))
        if how is not None:
            axes = (0, 1) if how == "last" else (-2, -1)
            content[f"{source}/illumination"] = np.fft.ifftshift(content[f"{source}/illumination"], axes=axes)
        arguments.append("--fftshift")
    storage = draw(st.sampled_from(("plain", "gzip", "Bitshuffle", "LZ4", "Zstd", "link", "virtual", "series")))
    if refused in ("folder", "missing"):
        storage = refused
    elif refused == "filter":
        storage = "filter"
    if refused == "positions" or (storage in ("plain", "gzip") and draw(st.booleans())):
        data = np.concatenate([data, data[:2]])
        if refused != "positions":
            arguments += ["--select", f"0:{M}"]
    elif storage != "series" and draw(st.booleans()):
        data = data.reshape(rows, columns, N, N)
    content[f"{detector}/data"] = data
    return Written(
        known, content, tuple(arguments), bad, probe if how else None, storage, draw(st.sampled_from((0, 512))), refused
    )  # fmt: skip


def write(folder: Path, written: Written) -> Path:
    """Write the file, and those that it links to."""
    content, path = dict(written.content), folder / "scan.h5"
    (name,) = [each for each in content if each.endswith("/data")]
    data = content.pop(name)
    options: dict[str, Any] = {}
    if written.storage in ("link", "virtual", "folder", "missing"):
        (folder / "away").mkdir()
        other = folder / ("away/other.h5" if written.storage == "folder" else "other.h5")
        write_hdf5(other, {"/raw/frames": data})
        if written.storage == "missing":
            other.unlink()
        content[name] = h5py.ExternalLink(str(other.relative_to(folder)), "/raw/frames")
    elif written.storage == "series":
        folder_of = f"/{name.split('/')[1]}/data"
        for number, part in enumerate(np.array_split(data, 2), 1):
            write_hdf5(folder / f"part_{number}.h5", {"/entry/data/data": part})
            content[f"{folder_of}/data_{number:06d}"] = h5py.ExternalLink(f"part_{number}.h5", "/entry/data/data")
    else:
        content[name] = data
    chunks = (*(1,) * (data.ndim - 2), *data.shape[-2:])
    if written.storage == "gzip":
        options = {"chunks": chunks, "compression": "gzip", "shuffle": True}
    elif written.storage in ("Bitshuffle", "LZ4", "Zstd"):
        plugin = pytest.importorskip("hdf5plugin")
        options = {"chunks": chunks, **getattr(plugin, written.storage)()}
    if written.storage in ("virtual", "filter"):
        del content[name]
    write_hdf5(path, content, user_block=written.user_block, **options)
    if written.storage == "virtual":
        layout = h5py.VirtualLayout(data.shape, data.dtype)
        layout[...] = h5py.VirtualSource("other.h5", "/raw/frames", data.shape)
        with h5py.File(path, "r+") as file:
            file.create_virtual_dataset(name, layout)
    if written.storage == "filter":
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(chunks)
        properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, (0, 2))
        with h5py.File(path, "r+") as file:
            group, _, last = name.rpartition("/")
            kind = h5py.h5t.py_create(data.dtype)
            space = h5py.h5s.create_simple(data.shape)
            h5py.h5d.create(file.require_group(group).id, last.encode(), kind, space, properties)
    return path


# Without shrinking: a file takes half a second, and its features are few and named as they are.
@settings(
    max_examples=FILES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(files())
def test_a_file_is_imported_or_refused_by_name(written: Written) -> None:
    hypothesis.note(written.describe())
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name), written)
        if written.refused is not None:
            with pytest.raises(PtychoError) as caught:
                convert(path, *written.arguments)
            assert REFUSED[written.refused] in str(caught.value)
            return
        found = convert(path, *written.arguments)
        assert_is(found, written.known, bad=written.bad)
        if written.probe is None:
            assert "probeGuess" not in found
        else:
            np.testing.assert_array_equal(found["probeGuess"].reshape(written.probe.shape), written.probe)

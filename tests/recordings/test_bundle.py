"""Bundles from strangers: whatever is wrong with a file, the error names file, key and remedy."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from conformance.errors import BundleError
from conformance.recordings import bundle
from conformance.recordings.bundle import RECORDINGS, read_bundle
from conformance.recordings.operations import is_operations_recording, read_operations

EMBEDDED = RECORDINGS / "n64_g2_base.npz"
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    with np.load(EMBEDDED) as recording:
        return dict(recording)


def config_with(arrays: Arrays, **changes: object) -> np.ndarray:
    return np.array(json.dumps({**json.loads(str(arrays["config"])), **changes}))


def without(arrays: Arrays, key: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name != key}


def cut(array: np.ndarray) -> np.ndarray:
    return array[:-1]


def nan_first(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = np.nan
    return changed


KERNEL = "weight/encoder.0.conv1.kernel"
DAMAGES: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "unknown key": (lambda a: a | {"stage/encoder.9.conv1": np.zeros(3)}, "unknown key 'stage/encoder.9.conv1'"),
    "missing weight": (lambda a: without(a, KERNEL), f"key '{KERNEL}' is missing"),
    "missing stage": (lambda a: without(a, "stage/merged"), "key 'stage/merged' is missing"),
    "missing shape": (lambda a: without(a, "shape/trained/encoder.0.conv1.bias"), "shape/trained/encoder.0.conv1.bias"),
    "misshapen weight": (lambda a: a | {KERNEL: a[KERNEL].transpose(3, 2, 0, 1)}, f"key '{KERNEL}' has shape"),
    "wrong channels": (lambda a: a | {"input/diffraction": a["input/diffraction"][..., :1]}, "input/diffraction"),
    "NaN in an input": (lambda a: a | {"input/offsets": nan_first(a["input/offsets"])}, "NaN or infinity"),
    "index outside": (lambda a: a | {"index/stage/merged": a["index/stage/merged"] + 10**8}, "index/stage/merged"),
    "index too short": (lambda a: a | {"index/stage/merged": cut(a["index/stage/merged"])}, "stage/merged"),
    "truth in float32": (
        lambda a: a | {"truth/stage/merged": a["truth/stage/merged"].astype(np.complex64)},
        "truth/stage/merged",
    ),
    "loss is a vector": (lambda a: a | {"loss/nll": np.zeros(2)}, "key 'loss/nll' has shape"),
    "shape of another stage": (lambda a: a | {"shape/stage/object": np.array([3, 64, 64, 2])}, "stage/object"),
    "no JSON": (lambda a: a | {"config": np.array("N: 64")}, "not JSON"),
    "JSON list": (lambda a: a | {"config": np.array("[]")}, "expected a JSON object"),
    "N = 96": (lambda a: a | {"config": config_with(a, N=96)}, "choose 64, 128 or 256"),
    "g = 0": (lambda a: a | {"config": config_with(a, gridsize=0)}, "gridsize = 0"),
    "odd padding": (lambda a: a | {"config": config_with(a, offset=5)}, "REF-03"),
    "unknown setting": (lambda a: a | {"config": config_with(a, gridsiez=2)}, "did you mean 'gridsize'"),
    "text for a number": (lambda a: a | {"config": config_with(a, N="64")}, "expected int"),
    "text for numbers": (
        lambda a: a | {"input/diffraction": np.array("x")},
        "'input/diffraction' has dtype <U1; expected",
    ),
    "complex weight": (lambda a: a | {KERNEL: a[KERNEL].astype(np.complex64)}, "expected real"),
    "real index": (lambda a: a | {"index/stage/merged": a["index/stage/merged"] + 0.5}, "expected integer"),
    "training without weights": (lambda a: without(a, "trained/encoder.0.conv1.bias"), "belong together"),
    "gradient of another shape": (
        lambda a: a | {"shape/grad/encoder.0.conv1.kernel": np.array([9, 4, 32])},
        "expected the weight's, (3, 3, 4, 32)",
    ),
    "negative RMS": (lambda a: a | {"rms/stage/merged": np.array(-1.0)}, "an RMS is zero or more"),
    "huge number": (lambda a: a | {"config": config_with(a, intensity_scale=10**400)}, "not a finite number"),
    "nested JSON": (lambda a: a | {"config": np.array("[" * 100_000)}, "not JSON"),
    "unknown object": (
        lambda a: a | {"config": config_with(a, realspace_weight=1.0, realspace_mae_weight=1.0)},
        "a bundle holds none",
    ),
    "other g than the arrays": (lambda a: a | {"config": config_with(a, gridsize=1)}, "input/diffraction"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused_by_name(arrays: Arrays, tmp_path: Path, damage: str) -> None:
    change, expected = DAMAGES[damage]
    path = tmp_path / "bundle.npz"
    np.savez(path, **change(dict(arrays)))
    with pytest.raises(BundleError) as caught:
        read_bundle(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_untouched_bundle_is_read(arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "bundle.npz"
    np.savez_compressed(path, **arrays)
    bundle = read_bundle(path)
    np.testing.assert_array_equal(bundle.case.weights["encoder.0.conv1.kernel"], arrays[KERNEL])
    np.testing.assert_array_equal(bundle.stages["merged"].values, arrays["stage/merged"])


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.97, 0.9999])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.npz"
    content = EMBEDDED.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(BundleError, match=r"cut\.npz: .*expected a complete NPZ file"):
        read_bundle(path)


def test_flipped_bytes_raise_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.npz"
    content = EMBEDDED.read_bytes()
    for _ in range(20):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 5):
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        with pytest.raises(BundleError, match=r"flipped\.npz"):
            read_bundle(path)


def test_no_pickle_is_opened(arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "pickled.npz"
    np.savez(path, **(arrays | {"provenance": np.array({"a": 1}, dtype=object)}))
    with pytest.raises(BundleError, match="only unpickling could read"):
        read_bundle(path)


def test_a_bomb_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_BYTES", 2**20)
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, config=np.zeros(2**20 + 1, np.uint8))
    with pytest.raises(BundleError, match="unpacks to"):
        read_bundle(path)


def test_a_header_that_promises_more_than_there_is_allocates_nothing(arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "liar.npz"
    np.savez(path, **without(arrays, "config"))
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("config.npy", header.getvalue() + bytes(8))
    with pytest.raises(BundleError, match=r"key 'config': .*does not fit"):
        read_bundle(path)


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        read_bundle(tmp_path / "nowhere.npz")


def test_recordings_of_operations_are_told_apart(tmp_path: Path) -> None:
    assert is_operations_recording(RECORDINGS / "ops_1.npz")
    assert not is_operations_recording(EMBEDDED)
    path = tmp_path / "ops.npz"
    np.savez(path, **read_operations(RECORDINGS / "ops_1.npz"), stranger=np.zeros(1))
    with pytest.raises(BundleError, match="unknown key 'stranger'"):
        read_operations(path)

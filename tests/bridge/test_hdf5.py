"""Untrusted HDF5: what Keras writes is read, everything else is refused, and no reader is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import platform
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from conformance.checks.archive_files import hdf5
from ptycho_tf_bridge.archives import hdf5 as subject
from ptycho_tf_bridge.archives.hdf5 import read_hdf5
from ptycho_tf_bridge.archives.members import open_members, open_members_of
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_torch.errors import PtychoError
from ptycho_torch.files import child_limits
from ptycho_torch.files.hdf5_files import open_hdf5

WHERE = "wts.h5.zip: autoencoder/model.h5"
Build = Callable[[h5py.File], object]


def refused(data: bytes, found: str) -> None:
    with pytest.raises(ArchiveError, match=re.escape(found)) as caught:
        read_hdf5(data, where=WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert message.isprintable()
    assert len(message) < 1000


# ------------------------------------------------------------------------------------------------- what is intact

ARRAYS: dict[str, np.ndarray] = {
    "layers/conv2d/vars/0": np.random.default_rng(2).random((3, 3, 2, 4), np.float32),
    "layers/conv2d/vars/1": np.arange(4, dtype=">f4"),
    "layers/empty/vars/0": np.zeros((0, 3), np.float64),
    "optimizer/vars/0": np.array(7, np.int64),
    "optimizer/vars/1": np.array([1, 255], np.uint8),
    "half": np.array([0.5], np.float16),
    "Δ": np.array([-1], np.int16),
}


def keras_like(file: h5py.File) -> None:
    for path, array in ARRAYS.items():
        file[path] = array
    for path, name in (("layers/conv2d/vars", "conv2d_8"), ("layers/probe_illumination/vars", "probe_illumination")):
        file.require_group(path).attrs["name"] = name
    file.attrs["intensity_scale"] = 20.766559600830078
    file.attrs["single"] = np.float32(0.1)
    file.attrs["count"] = -3
    file.attrs["bytes"] = np.bytes_("fixed")
    file["half"].attrs["unit"] = "µm"
    compact = h5p.create(h5p.DATASET_CREATE)
    compact.set_layout(h5d.COMPACT)
    dataset = h5d.create(file.id, b"compact", h5t.IEEE_F32LE, h5s.create_simple((2,)), dcpl=compact)
    dataset.write(h5s.ALL, h5s.ALL, np.array([1, 2], np.float32))


INTACT = hdf5(keras_like)


def test_arrays_and_attributes_come_out_as_h5py_gives_them() -> None:
    content = read_hdf5(INTACT, where=WHERE)
    expected = ARRAYS | {"compact": np.array([1, 2], np.float32)}
    assert set(content.arrays) == set(expected)
    for path, array in expected.items():
        ours = content.arrays[path]
        assert (ours.dtype, ours.shape, ours.tobytes()) == (array.dtype, array.shape, array.tobytes())
        ours[...] = 0
    assert content.attributes[""] == {
        "intensity_scale": 20.766559600830078,
        "single": float(np.float32(0.1)),
        "count": -3,
        "bytes": "fixed",
    }
    assert content.attributes["half"] == {"unit": "µm"}
    assert content.attributes["layers/probe_illumination/vars"] == {"name": "probe_illumination"}
    assert content.attributes["layers/conv2d/vars"] == {"name": "conv2d_8"}
    assert content.attributes["layers"] == {}


def test_newer_layouts_of_the_library_are_read() -> None:
    file = io.BytesIO()
    with h5py.File(file, "w", libver="latest", track_order=True) as opened:
        keras_like(opened)
    assert set(read_hdf5(file.getvalue(), where=WHERE).arrays) == {*ARRAYS, "compact"}


def test_weights_that_keras_saved_are_read(shared: Path) -> None:
    with open_members(shared / "archives" / "star_g2" / "wts.h5.zip") as members:
        scale = read_hdf5(members.read("diffraction_to_obj/model.h5"), where=WHERE)
        with open_members_of(members.read("diffraction_to_obj/model.keras"), "here") as inner:
            weights = read_hdf5(inner.read("model.weights.h5"), where=WHERE)
    assert scale.attributes[""] == {"intensity_scale": 20.766559600830078}
    assert sum(path.startswith("layers/conv2d") for path in weights.arrays) == 44
    assert weights.attributes["layers/conv2d_6/vars"] == {"name": "conv2d_8"}
    assert weights.arrays["layers/conv2d/vars/0"].shape == (3, 3, 4, 32)


# ------------------------------------------------------------------------------------------------- what is refused


def filtered(name: str, **options: Any) -> Build:
    return lambda file: file.create_dataset(name, data=np.zeros((8, 8)), **options)


def created(kind: h5t.TypeID, space: h5s.SpaceID | None = None, **layout: Any) -> Build:
    def build(file: h5py.File) -> None:
        properties = h5p.create(h5p.DATASET_CREATE)
        if "external" in layout:
            properties.set_external(*layout["external"])
        h5d.create(file.id, b"weights", kind, space or h5s.create_simple((3,)), dcpl=properties)

    return build


def attribute(value: Any, dtype: Any = None, name: str = "name") -> Build:
    return lambda file: file.create_group("layers").attrs.create(name, value, dtype=dtype)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("weights", layout)


def looped(file: h5py.File) -> None:
    file.create_group("a/b")
    file["a/b/up"] = file["a"]


def shared_twice(file: h5py.File) -> None:
    file["a"] = np.zeros(3)
    file["b"] = file["a"]


def odd_precision() -> h5t.TypeID:
    kind = h5t.STD_I32LE.copy()
    kind.set_precision(20)
    return kind


REFUSED: dict[str, tuple[Build, str]] = {
    "soft link": (lambda f: f.__setitem__("a", h5py.SoftLink("/b")), "a: found a soft link"),
    "external link": (lambda f: f.__setitem__("a", h5py.ExternalLink("/etc/passwd", "/b")), "a: found a link to anoth"),
    "circle": (looped, "there twice, or inside itself"),
    "one array at two places": (shared_twice, "there twice"),
    "deflate": (filtered("weights", compression="gzip"), "a dataset in chunks"),
    "shuffle": (filtered("weights", shuffle=True, chunks=(4, 4)), "a dataset in chunks"),
    "chunks": (filtered("weights", chunks=(4, 4)), "a dataset in chunks"),
    "growing": (filtered("weights", maxshape=(None, 8)), "a dataset in chunks"),
    "external storage": (created(h5t.IEEE_F32LE, external=(b"/etc/passwd", 0, 12)), "external storage"),
    "virtual": (virtual, "a virtual dataset"),
    "absurd shape": (created(h5t.IEEE_F32LE, h5s.create_simple((2**40, 2**20))), "with 0 bytes stored"),
    "never written": (created(h5t.IEEE_F32LE), "shape (3,) of float32 with 0 bytes stored"),
    "no content": (created(h5t.IEEE_F32LE, h5s.create(h5s.NULL)), "without content"),
    "nine axes": (lambda f: f.__setitem__("a", np.zeros((1,) * 9)), "9 axes"),
    "objects": (lambda f: f.create_dataset("a", data="text", dtype=h5py.string_dtype()), "values of type String"),
    "text": (lambda f: f.__setitem__("a", np.bytes_("text")), "values of type String"),
    "vlen": (lambda f: f.create_dataset("a", (1,), dtype=h5py.vlen_dtype("f4")), "values of type Vlen"),
    "reference": (lambda f: f.create_dataset("a", data=f.ref, dtype=h5py.ref_dtype), "values of type Reference"),
    "complex": (lambda f: f.__setitem__("a", np.zeros(2, complex)), "values of type Compound"),
    "structure": (lambda f: f.__setitem__("a", np.zeros(2, "f4,f4")), "values of type Compound"),
    "truth": (lambda f: f.__setitem__("a", np.zeros(2, bool)), "values of type Enum"),
    "opaque": (lambda f: f.__setitem__("a", np.zeros(2, "V4")), "values of type Opaque"),
    "long double": (lambda f: f.__setitem__("a", np.zeros(2, np.longdouble)), "values of type Float"),
    "20 bits": (created(odd_precision()), "in another way"),
    "named type": (lambda f: f.__setitem__("a", np.dtype("f4")), "neither group nor dataset"),
    "deep": (lambda f: f.create_group("/".join("g" * 20)), "more than 16 groups"),
    "attribute array": (attribute([1, 2]), "layers@name: found an attribute that is no single value"),
    "attribute without value": (attribute(h5py.Empty("f4")), "no single value"),
    "attribute list": (attribute(["a", "b"], h5py.string_dtype()), "no single value"),
    "attribute structure": (attribute(np.zeros((), "f4,f4")), "values of type Compound"),
    "attribute reference": (lambda f: f.attrs.create("a", f.ref, dtype=h5py.ref_dtype), "values of type Reference"),
    "attribute truth": (attribute(True), "values of type Enum"),
    "long text": (attribute("a" * 600), "the name or text"),
    "longer text": (attribute("a" * 10_000), "text of 10000 bytes"),
    "long fixed text": (attribute(np.bytes_(b"a" * 5000)), "an attribute of 5000 bytes"),
    "text of controls": (attribute("a\x1b[2J\nb"), "the name or text"),
    "text that is none": (attribute(np.bytes_(b"\xff\xfe")), "the name or text"),
    "name of controls": (lambda f: f.create_group("a\nb"), "the name or text"),
    "attribute name of controls": (attribute(1, name="a\nb"), "the name or text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_keras_never_writes_is_refused(name: str) -> None:
    build, found = REFUSED[name]
    refused(hdf5(build), found)


def test_many_objects_or_attributes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_OBJECTS", 6)
    refused(hdf5(lambda f: [f.create_group(str(i)) for i in range(7)]), "7 entries")
    refused(hdf5(lambda f: [f.create_group(f"a/{i}") for i in range(6)]), "more than 6 objects")
    monkeypatch.setattr(subject, "MAX_ATTRIBUTES", 2)
    refused(hdf5(lambda f: [f.attrs.create(str(i), i) for i in range(3)]), "3 attributes")


def test_arrays_that_share_their_bytes_are_refused() -> None:
    """Four headers are led to the same content, in a file that ends behind it: it would become larger than it is."""

    def build(file: h5py.File) -> None:
        for name in "abcd":
            file[name] = np.full(1000, ord(name), np.float64)

    data = hdf5(build)
    with h5py.File(io.BytesIO(data)) as file:
        places = [file[name].id.get_offset() for name in "abcd"]
    short = data[: places[1]]
    for place in places[1:]:
        short = short.replace(place.to_bytes(8, "little"), places[0].to_bytes(8, "little"))
    short = short.replace(len(data).to_bytes(8, "little"), len(short).to_bytes(8, "little"), 1)
    refused(short, "shape (1000,) of float64 with 8000 bytes stored")


@pytest.mark.parametrize("length", [0, 1, 8, 100, 500, len(INTACT) // 2, len(INTACT) - 1])
def test_a_truncated_file_is_refused(length: int) -> None:
    refused(INTACT[:length], "damaged content")


# ------------------------------------------------------------------------------------------------- the reader itself


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("exit 3", "exit code 3"),
        ("echo 'no module' >&2; exit 1", "no module"),
        ("kill -SEGV $$", "crashed the HDF5 library (SIGSEGV)"),
        ("kill -XCPU $$", "in the CPU time it had"),
        ("exec cat >/dev/null", "not read in"),
        ("exec sleep 60", "not read in"),
        ("printf 'Jgarbage!'; cat >/dev/null", "an answer of"),
        ("printf 'J\\x02\\0\\0\\0\\0\\0\\0\\0{}'; cat >/dev/null", "cannot be understood"),
        ("exec cat /dev/zero", "cannot be understood"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_a_reader_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: str
) -> None:
    """A stand-in takes the reader's place: it dies, falls silent, or lies."""
    stand_in(tmp_path, monkeypatch, script)
    monkeypatch.setattr(subject, "PATIENCE_S", 0.5 if script.startswith("exec") else 30.0)
    refused(INTACT * 50, found)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    python = folder / "python"
    python.write_text(f"#!/bin/bash\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.parametrize(
    ("arrays", "attributes"),
    [
        ([["a", "|O8", [1]]], {}),
        ([["a", "<f4,<f4", [1]]], {}),
        ([["a", "<U4", [1]]], {}),
        ([["a", "<f4", [-1]]], {}),
        ([["a", "<f4", [2**40]]], {}),
        ([["a", "<f4", [1] * 9]], {}),
        ([["a", "<f4", [1]], ["a", "<f4", [1]]], {}),
        ([[1, "<f4", [1]]], {}),
        ([["a", "<f4"]], {}),
        ("abc", {}),
        ([], {"": {"name": [1]}}),
        ([], {"": {"name": None}}),
        ([], {"": 3}),
        ([], []),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_a_reader_that_lies_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: Any, attributes: Any
) -> None:
    answers = [
        json.dumps(said).encode() for said in ({"files": [None]}, [{"arrays": arrays, "attributes": attributes}])
    ]
    messages = [b"J" + len(answer).to_bytes(8, "little") + answer for answer in answers]
    (tmp_path / "answer").write_bytes(b"".join(messages) + bytes(100))
    stand_in(tmp_path, monkeypatch, f"cat {tmp_path}/answer; cat >/dev/null")
    refused(INTACT, "cannot be understood")


def test_a_file_that_asks_for_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/statm").is_file():
        pytest.skip("memory is bounded on Linux alone")
    data = hdf5(lambda f: f.__setitem__("a", np.zeros(10**7)))
    monkeypatch.setattr(subject, "MEMORY_BYTES", 2**20 - 4 * len(data))
    refused(data, "content that asks for more than 0.000977 GiB of memory")


def test_no_process_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    read_hdf5(INTACT, where=WHERE)
    refused(INTACT[:100], "damaged")
    assert [child.returncode is not None for child in started] == [True, True]


HOSTILE = """
import ctypes, os, resource, socket

import h5py

FILE, BESIDE = {file!r}, {beside!r}


def again(path):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    return os.open(path, os.O_RDONLY)


ATTEMPTS = {{
    "open": lambda: os.open(BESIDE, os.O_RDONLY),
    "open again": lambda: again(BESIDE),
    "make": lambda: os.open(BESIDE + ".new", os.O_WRONLY | os.O_CREAT),
    "write": lambda: os.open(FILE, os.O_RDWR),
    "list": lambda: os.listdir("/"),
    "remove": lambda: os.unlink(BESIDE),
    "socket": lambda: socket.socket(),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "fork": lambda: os.fork() or os._exit(0),
    "signal": lambda: os.kill(os.getppid(), 0),
    "limit": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU),
}}


def attempt(*arguments, **options):
    done = []
    for name, act in ATTEMPTS.items():
        try:
            act()
        except (OSError, ValueError):
            continue
        done.append(name)
    raise ValueError(f"done: {{' '.join(done) or 'nothing'}}.")


{place} = attempt
"""


@pytest.mark.parametrize(
    "place", ["h5py.h5f.open", "h5py.h5o.get_info"], ids=["while a file is opened", "while it is read"]
)
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "on disk"])
def test_code_that_takes_over_the_reader_can_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, in_memory: bool
) -> None:
    """What a file would make of a hole in the HDF5 library is put into the process on purpose."""
    if not (sys.platform == "linux" and has_landlock() and platform.machine() in child_limits._MACHINES):
        pytest.skip("this kernel has no Landlock or no seccomp filter, so the limits of POSIX are all there is")
    file, beside = tmp_path / "scan.h5", tmp_path / "beside.h5"
    file.write_bytes(INTACT)
    beside.write_bytes(INTACT)
    (tmp_path / "h5py_hostile.py").write_text(HOSTILE.format(file=str(file), beside=str(beside), place=place))
    (tmp_path / "sitecustomize.py").write_text("import h5py_hostile")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(PtychoError, match=re.escape("done: nothing.")), contextlib.ExitStack() as stack:
        _ = read_hdf5(INTACT, where=WHERE) if in_memory else stack.enter_context(open_hdf5(file))
    assert sorted(each.name for each in tmp_path.glob("*.h5*")) == ["beside.h5", "scan.h5"]


def has_landlock() -> bool:
    return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) > 0


def test_the_reader_starts_without_torch_and_tensorflow() -> None:
    code = "import sys, ptycho_torch.files.hdf5_whole, ptycho_torch.files.hdf5_child; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "h5py" in modules
    assert not {"torch", "tensorflow", "yaml", "scipy"} & set(modules)


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_is_an_error_or_keeps_shapes_and_types(seed: int) -> None:
    """HDF5 has no checksums of its own, those of the ZIP archive around it guard the values."""
    rng = np.random.default_rng(seed)
    damaged = bytearray(INTACT)
    for position in rng.integers(0, len(damaged), 2 + 8 * (seed % 3)):
        damaged[position] = rng.integers(0, 256)
    try:
        content = read_hdf5(bytes(damaged), where=WHERE)
    except ArchiveError as err:
        message = str(err)
        assert message.isprintable()
        return
    assert sum(array.nbytes for array in content.arrays.values()) <= len(INTACT)

"""Published holes of model and array files, one small file each, and the clause that refuses it.

    python -m tests.fuzz.corpus          write the table into SECURITY.md
    python -m tests.fuzz.corpus FOLDER   write the files themselves

Holes with an identifier were published by that name; the others are named by their kind. The files are made from the
descriptions alone, and what they would run or read is harmless.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import marshal
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from conformance.checks.archive_files import hdf5, zipped
from ptycho_torch.config_params import NetworkSettings
from tests.fuzz.readers import LENGTH_BYTES
from tests.support.archives.archive_damage import TRACE
from tests.support.archives.content_damage import bombs, hostile_edits, source, unwritten, virtual
from tests.support.archives.reference_archives import Graph
from tests.support.archives.zip_files import archive, deflated, npy_bytes, npy_header, stored, zeros_bomb
from tests.support.checkpoint_files import checkpoint, tensor

SECURITY = Path(__file__).parents[2] / "SECURITY.md"
BEGIN, END = "<!-- corpus: begin -->", "<!-- corpus: end -->"
KIND = "kind"


@dataclasses.dataclass(frozen=True)
class Row:
    """One hole.

    Attributes:
        name: CVE, GHSA or issue by which it was published; ``KIND`` where only its kind is known.
        hole: what the file does to a careless reader.
        reader: key of ``READERS``.
        clause: of the specification, that refuses the file.
        build: makes the file.
    """

    name: str
    hole: str
    reader: str
    clause: str
    build: Callable[[], bytes]


# ----------------------------------------------------------------------------------------------------- Keras: graphs


def with_layer(kind: str, config: Mapping[str, Any], module: str = "keras.layers", name: str = "extra") -> bytes:
    """The reference's graph, whose first convolution reads one layer more."""
    model = json.loads(Graph(NetworkSettings(N=64, gridsize=1, n_filters_scale=1)).config())
    layers = model["config"]["layers"]
    entry = json.loads(json.dumps(layers[2])) | {
        "module": module,
        "class_name": kind,
        "registered_name": None,
        "name": name,
        "config": {"name": name, **config},
    }
    source(layers[2])[0] = name
    layers.insert(2, entry)
    return json.dumps(model).encode()


def function(module: str, name: str) -> dict[str, Any]:
    """A function by name, as Keras writes one into a configuration."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": "function"}


CODE = base64.b64encode(marshal.dumps(compile("print('hostile')", "hostile", "exec"))).decode()
LAMBDA = {"class_name": "__lambda__", "config": {"code": CODE, "defaults": None, "closure": None}}
GRAPHS: tuple[tuple[str, str, str, Mapping[str, Any], str], ...] = (
    ("CVE-2024-3660", "a Lambda layer with byte code", "Lambda", {"function": LAMBDA}, "keras.layers"),
    (
        "CVE-2025-1550",
        "any function of any module by name, with arguments",
        "function",
        {"config": "system", "arguments": ["touch CANARY"]},
        "os",
    ),
    (
        "CVE-2025-8747",
        "a Lambda layer that calls a function of Keras which fetches a file",
        "Lambda",
        {"function": function("keras.utils", "get_file"), "arguments": {"origin": "file:///etc/passwd"}},
        "keras.layers",
    ),
    (
        "CVE-2025-9906",
        "a layer that switches the safe mode off",
        "Lambda",
        {"function": function("keras.config", "enable_unsafe_deserialization")},
        "keras.layers",
    ),
    (
        "CVE-2026-12481",
        "byte code in a Lambda layer inside another layer, outside of the safe mode",
        "TimeDistributed",
        {"layer": {"module": "keras.layers", "class_name": "Lambda", "config": {"function": LAMBDA}}},
        "keras.layers",
    ),
    (
        "CVE-2025-49655",
        "a pickled PyTorch module in a TorchModuleWrapper",
        "TorchModuleWrapper",
        {"module": {"class_name": "__bytes__", "config": base64.b64encode(TRACE).decode()}},
        "keras.layers",
    ),
    (
        "CVE-2025-12058",
        "a vocabulary that is a path or an address",
        "StringLookup",
        {"vocabulary": "/etc/passwd"},
        "keras.layers",
    ),
)


def graphs() -> Iterator[Row]:
    for name, hole, kind, config, module in GRAPHS:
        yield Row(name, hole, "graph", "FILE-04", lambda kind=kind, c=config, m=module: with_layer(kind, c, m))  # type: ignore[misc]
    yield Row(
        "CVE-2026-12479",
        "a layer whose name climbs out of the folder",
        "graph",
        "FILE-04",
        lambda: with_layer("Dense", {}, name="../../outside"),
    )
    big = {"value": [0], "dtype": "(1000000000,)f8"}
    yield Row(
        KIND,
        "an array in a configuration whose type is a large block",
        "graph",
        "FILE-04",
        lambda: with_layer("Dense", {"kernel": {"class_name": "__numpy__", "config": big}}),
    )
    deep = b"[" * 10**6
    yield Row(KIND, "a configuration of a million open brackets", "graph", "FILE-04", lambda: deep)


# ------------------------------------------------------------------------------------------------------ Keras: HDF5

BIAS = "layers/conv2d/vars/1"
HDF5 = (
    ("CVE-2026-1669", "a dataset whose content is another file", "external storage"),
    ("CVE-2026-12480", "a virtual dataset of another file", "virtual"),
    ("CVE-2026-0897", "a dataset of a shape that no memory holds", "absurd shape"),
    ("keras #22899", "a link into another file", "external link"),
    ("keras #22900", "a soft link", "soft link"),
    ("CVE-2024-29157", "variable-length content, from the global heap (H5HG_read)", "vlen"),
    ("CVE-2024-33877", "a compound type, to be converted (H5T__conv_struct_opt)", "structure"),
    ("CVE-2026-29043", "references (H5T__ref_mem_setnull)", "references"),
    (KIND, "a group inside itself", "circle"),
    (KIND, "a decompression bomb behind a filter", "filter compression"),
    (KIND, "groups 300 deep", "deep groups"),
    (KIND, "5,000 groups", "many groups"),
)


def edited(kind: str) -> bytes:
    """A file of weights with one of the edits of ``content_damage``."""

    def build(file: h5py.File) -> None:
        for layer in ("conv2d", "conv2d_1"):
            file[f"layers/{layer}/vars/1"] = np.zeros(32, np.float32)
        dict(hostile_edits())[kind](file)

    return hdf5(build)


def keras_hdf5() -> Iterator[Row]:
    for name, hole, kind in HDF5:
        yield Row(name, hole, "keras_hdf5", "FILE-03", lambda kind=kind: edited(kind))  # type: ignore[misc]
    whole = hdf5(lambda file: file.__setitem__("a", np.zeros(300)))
    damaged = whole[:96] + bytes(8) + whole[104:]
    yield Row(
        KIND, "addresses of the library's own structures that lead nowhere", "keras_hdf5", "FILE-03", lambda: damaged
    )


# ---------------------------------------------------------------------------------------------------- Keras: archives


def linked() -> bytes:
    """An archive with a symbolic link."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        info = zipfile.ZipInfo("assets")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        made.writestr(info, "/etc")
    return file.getvalue()


def tarred() -> bytes:
    """A tar archive with a member that leads out."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        made.addfile(tarfile.TarInfo("../outside"))
    return file.getvalue()


def legacy() -> bytes:
    """A model in the older HDF5 format, with a Lambda layer in its attributes."""
    model = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda", "config": {"function": CODE}}]}}
    return hdf5(lambda file: file.attrs.__setitem__("model_config", json.dumps(model)))


def archives() -> Iterator[Row]:
    def with_bomb(name: str) -> bytes:
        config = dataclasses.replace(stored("", b"{}"), name="config.json")
        return archive([config, dataclasses.replace(zeros_bomb("", (16, 1024, 1024)), name=name)])

    yield Row(
        "GHSA-hqp4-2352-xf5r",
        "a member whose name leads out of the folder",
        "zip",
        "FILE-01",
        lambda: zipped({"../../outside": b""}),
    )
    yield Row(KIND, "a member with an absolute name", "zip", "FILE-01", lambda: zipped({"/etc/cron.d/job": b""}))
    yield Row(
        KIND, "a member with a drive letter and backslashes", "zip", "FILE-01", lambda: zipped({"C:\\outside": b""})
    )
    yield Row("keras #23015", "a symbolic link as a member, to write through", "zip", "FILE-01", linked)
    yield Row("CVE-2024-55459", "a tar archive in place of a model", "archive", "FILE-01", tarred)
    yield Row("CVE-2025-9905", "code in the older HDF5 format, where no safe mode looks", "archive", "FILE-01", legacy)
    yield Row(
        "keras #23010",
        "a member that unpacks to 1,000 times its size",
        "zip",
        "FILE-01",
        lambda: with_bomb("model.weights.h5"),
    )
    yield Row(
        "keras #23101",
        "such a member among the assets, which nobody reads",
        "zip",
        "FILE-01",
        lambda: with_bomb("assets/words.txt"),
    )
    nested = zipped({"wts.h5.zip": zipped({"wts.h5.zip": zipped({})})})
    yield Row(KIND, "archives inside each other", "archive", "FILE-01", lambda: nested)
    yield Row(KIND, "5,000 members", "zip", "FILE-01", lambda: zipped({str(number): b"" for number in range(5000)}))
    yield Row(
        "CVE-2025-10155",
        "a pickle under the name of a PyTorch file",
        "archive",
        "FILE-01",
        lambda: zipped({"model.pth": TRACE}),
    )


# ---------------------------------------------------------------------------------------------------- ZIP and arrays


def with_locator(content: bytes, place: int) -> bytes:
    """An archive whose ZIP64 locator leads to another place than the record before it."""
    end = len(content) - 22
    members, size, start = struct.unpack("<HII", content[end + 10 : end + 20])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, members, members, size, start)
    return content[:end] + record + struct.pack("<4sIQI", b"PK\6\7", 0, place, 1) + content[end:]


def arrays() -> Iterator[Row]:
    content = npy_bytes(np.zeros(4, np.float32))
    good = stored("array", content)
    structure = np.zeros(2, [("a", "O"), ("b", "f4")])
    pickled = npy_header((2,), "|O") + pickle.dumps([None, None])
    holes: tuple[tuple[str, str, str, str, Callable[[], bytes]], ...] = (
        (
            "CVE-2024-0450",
            "members that overlap, each of which counts",
            "npz",
            "NPZ-01",
            lambda: archive([good, dataclasses.replace(good, name="b.npy", lies_at=0)]),
        ),
        (
            "CVE-2025-8291",
            "a ZIP64 locator that leads other programs to another directory",
            "npz",
            "NPZ-01",
            lambda: with_locator(archive([good]), 0),
        ),
        (
            "CVE-2025-1944",
            "a name in the directory that is not the one before the content",
            "npz",
            "NPZ-01",
            lambda: archive([dataclasses.replace(good, local_name="b.npy")]),
        ),
        (
            "CVE-2025-1945",
            "flag bits that stop a scanner and no reader",
            "npz",
            "NPZ-01",
            lambda: archive([dataclasses.replace(good, flags=1)]),
        ),
        (
            "CVE-2025-10156",
            "a wrong CRC-32 that stops a scanner and no reader",
            "npz",
            "NPZ-01",
            lambda: archive([dataclasses.replace(good, crc32=1)]),
        ),
        (KIND, "two members of one name", "npz", "NPZ-01", lambda: archive([good, good])),
        (
            "keras #23016",
            "a header that asks for more than is stored",
            "npy",
            "NPZ-01",
            lambda: npy_header((2**40,)) + bytes(16),
        ),
        (KIND, "a decompression bomb", "npz", "NPZ-03", lambda: archive([zeros_bomb("diff3d", (65, 1024, 1024))])),
        (
            KIND,
            "a bomb whose directory understates it",
            "npz",
            "NPZ-01",
            lambda: archive([deflated("array", npy_header((2**18,)) + bytes(2**20), content_bytes=len(content))]),
        ),
        ("keras #23047", "an array of objects, which is a pickle", "npy", "NPZ-02", lambda: pickled),
        (
            KIND,
            "objects among the fields of a structure",
            "npy",
            "NPZ-02",
            lambda: npy_header((2,), structure.dtype.descr) + TRACE,
        ),
        (KIND, "a type that is a large block", "npy", "NPZ-01", lambda: npy_header((1,), ("<f4", (2**31 - 1,)))),
        (KIND, "a shape below zero", "npy", "NPZ-01", lambda: npy_header((-1,)) + bytes(16)),
        (
            KIND,
            "a header of 4,000 open brackets",
            "npy",
            "NPZ-01",
            lambda: b"\x93NUMPY\1\0" + struct.pack("<H", 4000) + b"(" * 4000,
        ),
        (KIND, "5,000 members", "npz", "NPZ-03", lambda: zipped({f"{number}.npy": content for number in range(5000)})),
    )
    for hole in holes:
        yield Row(*hole)


# ----------------------------------------------------------------------------------------------------------- pickles

GADGETS = (
    ("CVE-2025-1716", "pip", "main", "pip, which installs what it is told"),
    ("CVE-2025-71340", "idlelib.pyshell", "ModifiedInterpreter.runcode", "an interpreter of IDLE"),
    ("CVE-2025-71353", "torch._dynamo.guards", "GuardBuilder.get", "a guard of PyTorch, which evaluates text"),
    (
        "CVE-2025-71356",
        "torch.fx.experimental.symbolic_shapes",
        "ShapeEnv.evaluate_guards_expression",
        "symbolic shapes of PyTorch",
    ),
    ("CVE-2025-71345", "torch.utils.bottleneck.__main__", "run_autograd_prof", "a profiler of PyTorch"),
    ("CVE-2025-71378", "cProfile", "runctx", "cProfile.runctx"),
    ("CVE-2026-53873", "profile", "run", "profile.run"),
    ("CVE-2026-22606", "runpy", "run_path", "runpy, which runs a file"),
    ("CVE-2026-22607", "cProfile", "run", "cProfile.run"),
    ("CVE-2026-22608", "pydoc", "locate", "pydoc, which finds ctypes"),
    ("CVE-2026-22612", "builtins", "eval", "a function of builtins"),
    ("CVE-2025-67748", "pty", "spawn", "pty.spawn"),
    ("CVE-2025-67747", "marshal", "loads", "marshal and types, which make functions of bytes"),
    ("CVE-2026-14534", "_posixsubprocess", "fork_exec", "the C function that starts processes"),
)


def pickles() -> Iterator[Row]:
    for name, module, function_name, hole in GADGETS:
        code = f"c{module}\n{function_name}\n(S'touch CANARY'\ntR.".encode()
        yield Row(name, f"a pickle that calls {hole}", "pickle", "FILE-02", lambda code=code: code)  # type: ignore[misc]
    yield Row(
        "CVE-2026-24747", "SETITEM on what is no dictionary", "pickle", "FILE-02", lambda: b"\x80\x04]K\x00K\x01s."
    )
    every = dict(bombs())
    for kind, hole in (
        ("memo bomb", "a memo number that asks for gigabytes"),
        ("laughing tuples", "tuples that double 60 times"),
        ("keys of one hash", "19,000 keys of one hash"),
        ("deep list", "lists 40,000 deep"),
        ("absurd shape", "an array of a shape that its bytes do not fill"),
    ):
        yield Row(KIND, hole, "pickle", "FILE-02", lambda kind=kind: every[kind])  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------------- checkpoints


def safetensors(header: object, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def checkpoints() -> Iterator[Row]:
    tree = {"__metadata__": {"ptycho_torch": json.dumps({"state_dict": {"a": {"$tensor": "a"}}})}}
    place = {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 16]}
    deep = {"__metadata__": {"ptycho_torch": "[" * 10**5}}
    holes: tuple[tuple[str, str, bytes], ...] = (
        ("CVE-2025-32434", "torch.load with weights_only, led to an older format", tarred()),
        (
            "CVE-2026-24747",
            "a tensor of more elements than its storage has",
            safetensors(tree | {"a": place}, bytes(16)),
        ),
        ("CVE-2025-1889", "a pickle under another extension", b"\x80\x02" + TRACE),
        (KIND, "a pickle inside a ZIP archive, as torch.save writes it", zipped({"archive/data.pkl": TRACE})),
        (KIND, "a header longer than the file", struct.pack("<Q", 2**62) + b"{}"),
        (
            KIND,
            "tensors that share their bytes",
            safetensors(tree | {name: place | {"shape": [4]} for name in "ab"}, bytes(16)),
        ),
        (KIND, "a tree of 100,000 open brackets", safetensors(deep)),
        (KIND, "a tree that names a tensor which is not there", safetensors(tree)),
    )
    for name, hole, made in holes:
        yield Row(name, hole, "checkpoint", "FILE-06", lambda made=made: made)  # type: ignore[misc]
    content = np.zeros(4, np.float32)
    for hole, tensors in (
        ("a shape of 2⁸⁰ numbers", {"a": tensor(content, shape=(2**40, 2**40))}),
        ("a place beyond the data", {"a": tensor(content, offset=2**60)}),
        ("tensors that share their bytes", {name: tensor(content, offset=0) for name in "ab"}),
        ("a checksum that is made up", {"a": tensor(content, crc32c=0)}),
    ):
        index, data = checkpoint(tensors)
        data = data[: len(content.tobytes())]
        parts = len(index).to_bytes(LENGTH_BYTES, "little") + index + data
        yield Row(KIND, f"TensorFlow: {hole}", "tf_checkpoint", "FILE-05", lambda parts=parts: parts)  # type: ignore[misc]


# ----------------------------------------------------------------------------------------------------------- scans


def scans() -> Iterator[Row]:
    def layout(file: h5py.File) -> None:
        file["entry"] = np.zeros(32, np.float32)
        virtual(file, "entry")

    def filtered(file: h5py.File) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((8,))
        properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, (1,))
        h5py.h5d.create(file.id, b"entry", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((32,)), dcpl=properties)

    def edit(act: Callable[[h5py.File], object]) -> Callable[[], bytes]:
        return lambda: hdf5(act)

    holes: tuple[tuple[str, str, Callable[[h5py.File], object]], ...] = (
        (
            "keras #22899",
            "a link into a file of another folder",
            lambda f: f.__setitem__("entry", h5py.ExternalLink("/etc/passwd", "/x")),
        ),
        ("CVE-2026-1669", "content that is another file", lambda f: unwritten(f, "entry", (32,), external=True)),
        ("CVE-2026-12480", "a virtual dataset of a file of another folder", layout),
        ("CVE-2026-0897", "a shape that no memory holds", lambda f: unwritten(f, "entry", (2**50, 2**10))),
        (KIND, "a filter that a file asks to load from a library", filtered),
        (KIND, "chunks of 4 GiB", lambda f: f.create_dataset("entry", (2**40,), "f4", chunks=(2**30 - 1,))),
    )
    for name, hole, act in holes:
        yield Row(name, f"HDF5 scan: {hole}", "scan_hdf5", "CXI-02", edit(act))


# ------------------------------------------------------------------------------------------------ settings and reports


def texts() -> Iterator[Row]:
    laughs = ["a0: &a0 [lol, lol]"] + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    holes: tuple[tuple[str, str, str, str], ...] = (
        ("CVE-2026-45304", "aliases that multiply (billion laughs)", "settings", "\n".join(laughs)),
        (
            KIND,
            "aliases that multiply, as the value of a setting",
            "settings",
            "model:\n  N: &a [1, 2]\n  gridsize: [*a, *a]\n",
        ),
        (
            KIND,
            "a tag that calls a function",
            "settings",
            "model:\n  N: !!python/object/apply:os.system ['touch CANARY']\n",
        ),
        (KIND, "a list inside itself", "settings", "model: &a [*a]\n"),
        (KIND, "50,000 open brackets", "settings", "model: " + "[" * 50_000),
        (KIND, "a megabyte", "settings", "# " + "x" * 2**20),
        (KIND, "a number of 5,000 digits", "settings", "model:\n  N: " + "9" * 5000 + "\n"),
        (KIND, "100,000 open brackets", "report", "[" * 10**5),
        (KIND, "a number of 100,000 digits", "report", '{"tool": ' + "9" * 10**5 + "}"),
        (KIND, "keys that are there twice, of which readers take different ones", "report", '{"tool": 1, "tool": 2}'),
        (KIND, "numbers that are not finite", "report", '{"tool": NaN}'),
    )
    for name, hole, reader, text in holes:
        kind = "YAML" if reader == "settings" else "JSON"
        clause = "FILE-07" if reader == "settings" else "FILE-08"
        yield Row(name, f"{kind}: {hole}", reader, clause, lambda text=text: text.encode())  # type: ignore[misc]


ROWS: tuple[Row, ...] = (
    *graphs(),
    *keras_hdf5(),
    *archives(),
    *arrays(),
    *pickles(),
    *checkpoints(),
    *scans(),
    *texts(),
)

PAGES = (
    ("CVE-2024-27132", "HTML in the names of files and cases, shown on a page"),
    ("CVE-2024-27133", "HTML in the values of a table, shown on a page"),
)
"""Holes that no file is refused for: the text is shown as text."""


def table() -> str:
    """Return the rows as SECURITY.md has them."""
    lines = ["| hole | what a file does | refused by |", "|---|---|---|"]
    lines += [f"| {row.name} | {row.hole} | {row.clause} |" for row in ROWS]
    lines += [f"| {name} | {hole} | FILE-08: shown as text |" for name, hole in PAGES]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """Return the text of SECURITY.md with the table of today between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        os.makedirs(folder, exist_ok=True)
        for number, row in enumerate(ROWS):
            (folder / f"{number:02}-{row.reader}").write_bytes(row.build())
    else:
        SECURITY.write_text(with_table(SECURITY.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

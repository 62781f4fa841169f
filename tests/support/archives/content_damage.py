"""Archives whose ZIP file is right and whose content is damaged or hostile: pickles, HDF5, graphs and checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

from conformance.checks.archive_files import hdf5, scale_file, zipped
from tests.support.archives.archive_damage import (
    CANARY,
    DATA,
    GRAPH,
    H5,
    INDEX,
    KERAS,
    MODEL,
    PARAMETERS,
    PROBE,
    SAME,
    SCALE,
    SETTINGS,
    SOUND,
    TRACE,
    WEIGHTS,
    Damage,
    LeavesTrace,
    Members,
    checkpoint_tensors,
    flipped,
    hostile_zips,
    keras_members,
    of_members,
    of_the_file,
    packed,
    savedmodel_members,
)
from tests.support.archives.reference_archives import Graph, unzipped, weights_file
from tests.support.checkpoint_files import checkpoint, header, tensor

MIB = 2**20

# ------------------------------------------------------------------------------------------------- pickles

CALLS: tuple[tuple[Callable[..., Any], Any], ...] = (
    (os.system, (f"touch {CANARY}",)),
    (os.popen, (f"touch {CANARY}",)),
    (os.mkdir, (CANARY,)),
    (os.execv, ("/bin/sh", ["sh", "-c", f"touch {CANARY}"])),
    (subprocess.Popen, (["touch", CANARY],)),
    (subprocess.check_output, (["touch", CANARY],)),
    (eval, (f"open({CANARY!r}, 'w')",)),
    (exec, (f"open({CANARY!r}, 'w')",)),
    (open, (CANARY, "w")),
    (__import__, ("antigravity",)),
    (getattr, ("", "format")),
    (pickle.loads, (TRACE,)),
    (np.load, (CANARY,)),
    (np.memmap, (CANARY, "f4", "w+", 0, (1000,))),
    (np.zeros, ((2**40,),)),
    (bytearray, (2**45,)),
)


def foreign_pickles() -> Iterator[tuple[str, bytes]]:
    for function, arguments in CALLS:
        for protocol in (0, 2, 4, 5):
            value = LeavesTrace(function, *arguments)
            yield f"call of {function.__name__}", pickle.dumps({"N": 64, "probe": value}, protocol)
    for code in (b"cos\nsystem\n(S'touch CANARY'\ntR.", b"(S'touch CANARY'\nios\nsystem\n.", b"\x80\x04Pcanary\n."):
        yield "old opcodes", code
    yield "object array", pickle.dumps({"probe": np.array([LeavesTrace(os.mkdir, CANARY)], object)}, 4)


def bombs() -> Iterator[tuple[str, bytes]]:
    long = b"B" + struct.pack("<I", MIB) + bytes(MIB)
    yield "memo bomb", b"\x80\x04Nr\xff\xff\xff\x7f."
    yield "length bomb", b"\x80\x04B\xff\xff\xff\x7f."
    yield "length bomb", b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"."
    yield "laughing tuples", b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60)) + b"."
    yield "laughing keys", b"\x80\x04})\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60)) + b"Ns."
    # Multiples of the prime that hashes are reduced by: all have the hash 0.
    keys = b"".join(b"\x8a\x10" + (number * (2**61 - 1)).to_bytes(16, "little") + b"N" for number in range(19_000))
    yield "keys of one hash", b"\x80\x04}(" + keys + b"u."
    yield "list in itself", b"\x80\x04]\x94h\x00a."
    yield "deep list", b"\x80\x04" + b"]" * 40_000 + b"a" * 39_999 + b"."
    yield "many opcodes", b"\x80\x04](" + b"N" * 10**6 + b"e."
    yield "many marks", b"\x80\x04" + b"(" * 10**6 + b"."
    yield "long number", b"\x80\x04\x8b" + struct.pack("<I", MIB) + b"\x7f" * MIB + b"."
    dtype = b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02u1\x85R"
    call = b"\x8c\x12numpy.core.numeric\x8c\x0b_frombuffer\x93\x94"
    shape = b"J" + struct.pack("<I", MIB) + b"\x85"
    yield (
        "many arrays",
        b"\x80\x04(" + call + b"(" + long + dtype + shape + b"\x8c\x01Ct\x94" + b"h\x00h\x01R" * 9999 + b"t.",
    )
    absurd = b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
    yield "absurd shape", b"\x80\x04" + call + b"(C\x04abcd" + dtype + absurd + b"\x8c\x01CtR."


def of_pickles(rng: np.random.Generator, members: Members) -> Iterator[Damage]:
    """What is pickled: code, bombs, damage under a new checksum, and values of wrong types."""
    for name in (PARAMETERS, "manifest.dill"):
        for kind, content in (*foreign_pickles(), *bombs()):
            yield Damage(kind, packed(members | {name: content}))
        content = members[name]
        start = 0 if name == "manifest.dill" else len(content) - 400
        for _ in range(60):
            position, bit = int(rng.integers(start, len(content))), int(rng.integers(8))
            yield Damage("bit of a pickle", packed(members | {name: flipped(content, position, bit)}), SOUND)
            cut = int(rng.integers(len(content)))
            yield Damage(
                "bytes of a pickle", packed(members | {name: content[:cut] + rng.bytes(3) + content[cut:]}), SOUND
            )
    saved = pickle.loads(members[PARAMETERS])
    wrong = ("text", -1, 10**30, 0, 0.5, float("nan"), float("inf"), b"64", [64], {"N": 64}, (64,), True, PROBE, None)
    for key in ("N", "gridsize", "n_filters_scale", "object.big", "pad_object", "amp_activation", "offset", "probe",
                "intensity_scale", "gaussian_smoothing_sigma", "max_position_jitter", "probe.mask"):  # fmt: skip
        for value in wrong:
            yield Damage(f"type of {key}", packed(members | {PARAMETERS: pickle.dumps(saved | {key: value}, 4)}), SOUND)
    for shape in ((64,), (64, 64, 2), (0,), (1, 1, 1, 1, 1, 1, 1, 64 * 64), (128, 128), (64, 32)):
        probe = np.resize(PROBE, shape)
        yield Damage("shape of probe", packed(members | {PARAMETERS: pickle.dumps(saved | {"probe": probe}, 4)}), SOUND)
    for probe in (np.zeros((64, 64, 1)), PROBE * np.nan, np.ones((64, 64), bool), np.ones((64, 64), np.int32)):
        yield Damage("value of probe", packed(members | {PARAMETERS: pickle.dumps(saved | {"probe": probe}, 4)}))
    for value in ([], 3, "text", None, {1: 2}, {}, [saved], {"models": 3}, {"models": [3]}, {"models": ["nothing"]}):
        for name in (PARAMETERS, "manifest.dill"):
            yield Damage(f"wrong {name}", packed(members | {name: pickle.dumps(value, 4)}), SOUND)


# ------------------------------------------------------------------------------------------------- HDF5

Build = Callable[[h5py.File], Any]


def unwritten(file: h5py.File, path: str, shape: tuple[int, ...], external: bool = False) -> None:
    """Create a dataset of any shape without content of its own."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if external:
        properties.set_external(b"/etc/passwd", 0, h5py.h5f.UNLIMITED)
    if path in file:
        del file[path]
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, path.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=properties)


def virtual(file: h5py.File, path: str) -> None:
    layout = h5py.VirtualLayout((32,), "f4")
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", (32,))
    del file[path]
    file.create_virtual_dataset(path, layout)


def replaced(path: str, value: Any, **options: Any) -> Build:
    def build(file: h5py.File) -> None:
        if path in file:
            del file[path]
        if isinstance(value, h5py.SoftLink | h5py.ExternalLink):
            file[path] = value
        else:
            file.create_dataset(path, data=value, **options)

    return build


def hostile_edits() -> Iterator[tuple[str, Build]]:
    bias = "layers/conv2d/vars/1"
    yield "external link", replaced(bias, h5py.ExternalLink("/etc/passwd", "/x"))
    yield "soft link", replaced(bias, h5py.SoftLink("/layers/conv2d_1/vars/1"))
    yield "soft circle", replaced(bias, h5py.SoftLink(f"/{bias}"))
    yield "hard link", lambda file: file["layers"].__setitem__("again", file["layers/conv2d"])
    yield "circle", lambda file: file["layers/conv2d"].__setitem__("up", file["layers"])
    yield "external storage", lambda file: unwritten(file, bias, (32,), external=True)
    yield "virtual", lambda file: virtual(file, bias)
    yield "absurd shape", lambda file: unwritten(file, bias, (2**50, 2**10))
    yield "never written", lambda file: unwritten(file, bias, (32,))
    yield "absurd extra", lambda file: unwritten(file, "layers/conv2d/vars/7", (2**40,))
    for options in ({"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True}, {"compression": "lzf"}):
        yield f"filter {next(iter(options))}", replaced(bias, np.zeros(32, np.float32), chunks=(8,), **options)
    yield "absurd chunks", lambda file: file.create_dataset("layers/x", (2**40,), "f4", chunks=(2**28,))
    yield "objects", replaced(bias, "text", dtype=h5py.string_dtype())
    yield "references", lambda file: file.create_dataset("layers/x", data=file.ref, dtype=h5py.ref_dtype)
    yield "vlen", lambda file: file.create_dataset("layers/x", (3,), h5py.vlen_dtype("f4"))
    yield "structure", replaced(bias, np.zeros(32, "f4,f4"))
    yield "text attribute", lambda file: file["layers/conv2d/vars"].attrs.__setitem__("name", "a" * 10**5)
    yield "attribute array", lambda file: file["layers/conv2d/vars"].attrs.__setitem__("name", np.zeros(3000))
    yield "deep groups", lambda file: file.create_group("/".join("g" * 300))
    yield "many groups", lambda file: [file.create_group(f"layers/g{number}") for number in range(5000)]


def sound_edits() -> Iterator[tuple[str, Build]]:
    """Shapes and types that no network has, and values that cannot predict."""
    kernel, bias = "layers/conv2d_1/vars/0", "layers/conv2d_1/vars/1"
    weights = WEIGHTS["encoder.0.conv2.kernel"]
    for shape in ((32, 32, 3, 3), (3, 3, 1, 1024), (3, 3, 32, 31), (9, 32, 32), (0,), (3, 3, 32, 64)):
        yield "swapped shape", replaced(kernel, np.resize(weights, shape))
    for dtype in ("f8", "f2", ">f4", "i4", "u1"):
        yield "wrong type", replaced(kernel, weights.astype(dtype))
    for value in (np.nan, np.inf):
        yield "not finite", replaced(bias, np.full(32, value, np.float32))
    yield "missing bias", lambda file: file.__delitem__(bias)
    yield "missing layer", lambda file: file.__delitem__("layers/conv2d_3")
    yield "no layers", lambda file: file.__delitem__("layers")
    yield "array for a layer", replaced("layers/conv2d_3", np.zeros(3))
    yield "another name", lambda file: file["layers/conv2d_3/vars"].attrs.__setitem__("name", "conv2d_9")
    yield "name of a number", lambda file: file["layers/conv2d_3/vars"].attrs.__setitem__("name", 3)
    yield "extra layer", replaced("layers/conv2d_77/vars/0", weights)
    yield (
        "exchanged layers",
        lambda file: (
            file.move("layers/conv2d_6", "layers/x"),
            file.move("layers/conv2d_9", "layers/conv2d_6"),
            file.move("layers/x", "layers/conv2d_9"),
        ),
    )


def of_hdf5(rng: np.random.Generator, members: Members) -> Iterator[Damage]:
    """HDF5 under a new checksum: of the weights, and of the small file that holds a scale."""
    graph = Graph(SETTINGS)
    for kind, edit in hostile_edits():
        yield Damage(kind, packed(with_h5(members, weights_file(graph, WEIGHTS, edit=edit))))
    for kind, edit in sound_edits():
        yield Damage(kind, packed(with_h5(members, weights_file(graph, WEIGHTS, edit=edit))), SOUND)
    weights = unzipped(members[KERAS])[H5]
    structure = [i for at in signatures(weights) for i in range(at, at + 200)]
    for _ in range(70):
        damaged = bytearray(weights)
        for position in rng.choice(structure, 3):
            if position < len(damaged):
                damaged[position] = rng.integers(256)
        yield Damage("bytes of HDF5", packed(with_h5(members, bytes(damaged))), SOUND)
    for length in (0, 7, 96, 2000, len(weights) // 2, len(weights) - 1):
        yield Damage("short HDF5", packed(with_h5(members, weights[:length])))
    scale = members[SCALE]
    for position in rng.choice(len(scale), 60, replace=False):
        yield Damage("bytes of HDF5", packed(members | {SCALE: flipped(scale, position, int(rng.integers(8)))}), SOUND)
    for value in (np.nan, -1.0, 0.0, "text", np.bytes_("text"), 7, np.float32(20.5)):
        content = scale_file(value)
        yield Damage("value of a scale", packed(members | {SCALE: content}), SOUND)


def with_h5(members: Members, content: bytes) -> Members:
    return members | {KERAS: packed(unzipped(members[KERAS]) | {H5: content})}


def signatures(content: bytes) -> list[int]:
    """Where the structures of an HDF5 file begin."""
    found = [0]
    for signature in (b"TREE", b"HEAP", b"SNOD", b"OHDR", b"GCOL"):
        at = content.find(signature)
        while at >= 0:
            found.append(at)
            at = content.find(signature, at + 1)
    return found


# ------------------------------------------------------------------------------------------------- graph, checkpoint


def of_graphs(rng: np.random.Generator, members: Members) -> Iterator[Damage]:
    """``config.json``: bits and types, and graphs that lead nowhere or in a circle."""
    content = unzipped(members[KERAS])[GRAPH]

    def with_graph(new: bytes, name: str = GRAPH) -> bytes:
        return packed(members | {KERAS: packed(unzipped(members[KERAS]) | {name: new})})

    for _ in range(40):
        yield Damage("bit of a graph", with_graph(flipped(content, int(rng.integers(len(content))))), SOUND)
    long = (b"[" * 10**6, b'{"a":' * 10**5, b"1" * 10**6)
    for text in (*long, b"null", b"[]", b'"\\ud800"', b"NaN", b"{}", b"\xff\xfe"):
        yield Damage("hostile JSON", with_graph(text))
    controls = b'{"date_saved": "a\\n\\u001b[2J"}'
    for text in (*long, controls, b"[]", b"3", b'{"date_saved": [1]}', b'{"written_by": null}'):
        yield Damage("hostile metadata", with_graph(text, "metadata.json"), SOUND)
    for edit in (circle, to_itself, crowd, thicket, nobody, numbers, strings, nulls, huge, slices):
        model = json.loads(content)
        edit(model["config"]["layers"])
        yield Damage(f"graph: {edit.__name__}", with_graph(json.dumps(model).encode()))
    entries = json.loads(content)["config"]["layers"]
    for _ in range(40):
        model = json.loads(content)
        layer = model["config"]["layers"][int(rng.integers(len(entries)))]
        key = str(rng.choice(list(layer)))
        layer[key] = [None, 3, "text", [], {}, [[3]], {"a": 1}, True][int(rng.integers(8))]
        yield Damage(f"graph: type of {key}", with_graph(json.dumps(model).encode()), SOUND)


Layers = list[dict[str, Any]]


def circle(layers: Layers) -> None:
    """The first convolution reads the last layer."""
    source(layers[2])[0] = layers[-1]["name"]


def to_itself(layers: Layers) -> None:
    source(layers[5])[0] = layers[5]["name"]


def source(layer: dict[str, Any]) -> list[Any]:
    history: list[Any] = layer["inbound_nodes"][0]["args"][0]["config"]["keras_history"]
    return history


def crowd(layers: Layers) -> None:
    layers += [{**layers[3], "name": f"layer{number}"} for number in range(5000)]


def thicket(layers: Layers) -> None:
    """What is joined reads one layer 15,000 times, which reads another as often."""
    for layer in layers:
        if layer["class_name"] in ("Add", "ZeroPadding2D"):
            layer["inbound_nodes"][0]["args"] = layer["inbound_nodes"][0]["args"][:1] * 15_000


def nobody(layers: Layers) -> None:
    source(layers[7])[0] = "nobody"


def numbers(layers: Layers) -> None:
    layers[:] = [3] * len(layers)  # type: ignore[list-item]


def strings(layers: Layers) -> None:
    for layer in layers:
        layer["inbound_nodes"] = "text"


def huge(layers: Layers) -> None:
    """A factor that no floating-point number can hold."""
    activation = next(layer for layer in layers if layer["class_name"] == "ActivationLayer")
    activation["config"]["scale"] = 10**400


def slices(layers: Layers) -> None:
    """Slices that are no dictionaries, and a name of many lines without end."""
    for layer in layers:
        if layer["class_name"] == "GetItem":
            layer["inbound_nodes"][0]["args"][1:] = [{"class_name": "__slice__", "config": "\n" * 10**5}]


def nulls(layers: Layers) -> None:
    for layer in layers:
        layer["config"] = None


def of_checkpoints(rng: np.random.Generator, members: Members) -> Iterator[Damage]:
    """Index and data of a checkpoint under a new checksum of ZIP: theirs are still wrong, or the index lies."""
    for _ in range(50):
        index = flipped(members[INDEX], int(rng.integers(len(members[INDEX]))), int(rng.integers(8)))
        yield Damage("bit of an index", packed(members | {INDEX: index}), SAME)
        data = flipped(members[DATA], int(rng.integers(len(members[DATA]))), int(rng.integers(8)))
        yield Damage("bit of the data", packed(members | {DATA: data}), SAME)
    tensors = checkpoint_tensors()
    for lies in (
        {"shape": (2**40, 2**40)}, {"shape": (-1,)}, {"shape": ()}, {"dtype": 7}, {"dtype": 2}, {"offset": 2**60},
        {"offset": -5}, {"size": 2**50}, {"crc32c": 0}, {"shard": 3}, {"dtype": 20}, {"shape": (1,) * 300},
    ):  # fmt: skip
        for name in (list(tensors)[1], list(tensors)[-1]):
            index, data = checkpoint(tensors | {name: dataclasses.replace(tensors[name], **lies)})
            yield Damage(f"{next(iter(lies))} in an index", packed(members | {INDEX: index, DATA: data}), SOUND)
    for name in list(tensors)[1:14:2]:
        fewer = {other: part for other, part in tensors.items() if other != name}
        content = np.frombuffer(tensors[name].content, np.float32)
        for changed in (fewer, fewer | {name: tensor(content)}, fewer | {name: tensor(content * np.nan)}):
            index, data = checkpoint(changed)
            yield Damage("tensor", packed(members | {INDEX: index, DATA: data}))
    index, data = checkpoint(tensors, header(shards=2))
    yield Damage("two data files", packed(members | {INDEX: index, DATA: data}))


def of_bundles(rng: np.random.Generator) -> Iterator[Damage]:
    """Bundles of PyTorch, which a careless reader would unpickle."""
    for kind, content in foreign_pickles():
        bundle = zipped({"model/data.pkl": content, "model/data/0": b""})
        yield Damage(f"PyTorch: {kind}", zipped({f"{MODEL}/model.pth": bundle}))
    for content in (b"", TRACE, rng.bytes(300), b"(" * 10**6):
        yield Damage("PyTorch: no bundle", zipped({f"{MODEL}/model.pth": content}))
        yield Damage("PyTorch: no pickle", zipped({f"{MODEL}/model.pth": zipped({"model/data.pkl": content})}))


# ------------------------------------------------------------------------------------------------- all of them


def draw_damage(seed: int = 0) -> Iterator[Damage]:
    """Yield every archive, in an order that mixes quick and slow ones."""
    rng = np.random.default_rng(seed)
    keras, savedmodel = keras_members(), savedmodel_members()
    for members in (keras, savedmodel):
        yield from of_the_file(rng, members)
        yield from hostile_zips(members)
    yield from of_members(rng, savedmodel)
    yield from (damage for damage in of_members(rng, keras) if damage.kind != "exchanged members")
    yield from of_pickles(rng, savedmodel)
    yield from of_checkpoints(rng, savedmodel)
    yield from of_hdf5(rng, keras)
    yield from of_graphs(rng, keras)
    yield from of_bundles(rng)
    for content in (b"", b"PK", TRACE, hdf5(lambda file: None), rng.bytes(10**5), b"\x93NUMPY" + bytes(100)):
        yield Damage("no archive", content)

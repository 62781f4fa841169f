"""Damaged and hostile archives, drawn from two small honest ones: the file as a whole, and its members.

What is wrong inside members is in ``content_damage.py``, and ``watched_reading.py`` reads them all.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from conformance.checks.archive_files import variables_of, zipped
from ptycho_torch.config_params import NetworkSettings
from tests.support.archives.reference_archives import (
    Graph,
    archive_members,
    draw_probe,
    draw_weights,
    keras_file,
    run_parameters,
    savedmodel_archive,
    unzipped,
)
from tests.support.archives.zip_files import archive, stored, zeros_bomb
from tests.support.checkpoint_files import Tensor, tensor

Members = dict[str, bytes]
SETTINGS = NetworkSettings(N=64, gridsize=1, n_filters_scale=1, intensity_scale=20.5)
WEIGHTS = draw_weights(SETTINGS)
PROBE = draw_probe(SETTINGS.N)
CANARY = "CANARY"
"""Name of the file that code from an archive leaves behind."""

MODEL = "diffraction_to_obj"
KERAS, SCALE, PARAMETERS = f"{MODEL}/model.keras", f"{MODEL}/model.h5", f"{MODEL}/params.dill"
VARIABLES = f"{MODEL}/variables/variables"
INDEX, DATA = f"{VARIABLES}.index", f"{VARIABLES}.data-00000-of-00001"
GRAPH, H5 = "config.json", "model.weights.h5"

REFUSED, SAME, SOUND = "refused", "same", "sound"
"""What may become of an archive, beside a refusal.

``REFUSED``: nothing else. ``SAME``: what a checksum guards (a ZIP archive's CRC-32, a checkpoint's CRC-32C) comes out
as it was, or not at all; so the damage touched nothing that is read. ``SOUND``: the checksum was made anew around the
damage, so that it can have made another valid archive, as if somebody had trained one; then every value has the type,
the shape and the range that the reader promises.
"""


@dataclasses.dataclass(frozen=True)
class Damage:
    """One archive.

    Attributes:
        kind: what was done, in a word or two.
        content: of the file.
        otherwise: what may become of it, beside a refusal.
    """

    kind: str
    content: bytes
    otherwise: str = REFUSED


class LeavesTrace:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


TRACE = pickle.dumps(LeavesTrace(os.mkdir, CANARY), 4)


def keras_members() -> Members:
    """The archive since Keras 3; whoever opens its ``custom_objects.dill`` leaves a trace."""
    saved = run_parameters(SETTINGS, probe=PROBE[..., None])
    model = keras_file(Graph(SETTINGS), WEIGHTS)
    return archive_members({MODEL: model}, saved, SETTINGS.intensity_scale) | {f"{MODEL}/custom_objects.dill": TRACE}


def checkpoint_tensors() -> dict[str, Tensor]:
    return {name: tensor(array) for name, array in variables_of(SETTINGS, WEIGHTS, PROBE).items()}


def savedmodel_members() -> Members:
    """The archive of the years before; its checkpoint is read without a child process, so most pickles come in it."""
    saved = run_parameters(SETTINGS, probe=PROBE[..., None])
    members = savedmodel_archive(MODEL, variables_of(SETTINGS, WEIGHTS, PROBE), saved, TRACE)
    return members | {f"{MODEL}/custom_objects.dill": TRACE}


def packed(members: Members) -> bytes:
    return zipped(members, zipfile.ZIP_STORED)


# ------------------------------------------------------------------------------------------------- the whole archive


def flipped(content: bytes, position: int, bit: int = 0) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


def of_the_file(rng: np.random.Generator, members: Members) -> Iterator[Damage]:
    """Bits, bytes and ends of the file itself, below the checksums of ZIP."""
    whole = packed(members)
    # The directory, and headers between the contents, are a small part: half of the damage goes there.
    headers = [(whole.index(name.encode()), len(name)) for name in members]
    places = [position for at, length in headers for position in range(at - 30, at + length)]
    places += range(struct.unpack_from("<I", whole, len(whole) - 6)[0], len(whole))
    for number in range(120):
        position = int(rng.choice(places)) if number % 2 else int(rng.integers(len(whole)))
        yield Damage("bit flip", flipped(whole, position, int(rng.integers(8))), SAME)
    for _ in range(30):
        start = int(rng.choice(places))
        yield Damage("bytes", whole[:start] + rng.bytes(int(rng.integers(1, 40))) + whole[start + 20 :], SAME)
    for length in [*range(1, 30, 5), *(int(length) for length in rng.integers(0, len(whole), 24)), len(whole) - 1]:
        yield Damage("truncation", whole[:length])
    for start in rng.integers(0, len(whole) - 5000, 10):
        yield Damage("hole", whole[:start] + bytes(4096) + whole[start + 4096 :], SAME)
        yield Damage("gap", whole[:start] + whole[start + 4096 :], SAME)


def of_members(rng: np.random.Generator, members: Members) -> Iterator[Damage]:
    """Members that are missing, renamed, exchanged, cut short or something else."""
    idle = {f"{MODEL}/custom_objects.dill", f"{MODEL}/keras_metadata.pb", f"{MODEL}/saved_model.pb"}
    for name, content in members.items():
        without = {other: part for other, part in members.items() if other != name}
        yield Damage("missing member", packed(without), SOUND)
        for new in ("../" + name, "/" + name, name.replace("/", "\\") + "\\x", "C:" + name, name + "\n"):
            yield Damage("path that leads out", packed(without | {new: content}))
        for new in (name.upper(), name + "x", "other/" + name, name.rpartition("/")[2]):
            yield Damage("renamed member", packed(without | {new: content}), SOUND)
        for junk in (b"", b"\0" * 1000, b"junk " * 50, rng.bytes(500), TRACE, zipped({"x": b""}), b"[" * 10**5):
            yield Damage("junk", packed(members | {name: junk}), SAME if name in idle else SOUND)
        for length in {int(length) for length in rng.integers(0, len(content), 5)} if name not in idle else ():
            yield Damage("short member", packed(members | {name: content[:length]}))
        for other in members:
            if other > name and not {name, other} & idle:
                yield Damage("exchanged members", packed(members | {name: members[other], other: content}))


def hostile_zips(members: Members) -> Iterator[Damage]:
    """Bombs, members inside each other, and members of foreign kinds."""
    bomb = zeros_bomb("", (300, 512, 512))
    inner = [stored("", part) for part in unzipped(members[KERAS]).values()] if KERAS in members else []
    names = list(unzipped(members[KERAS])) if KERAS in members else []
    honest = [dataclasses.replace(stored("", part), name=name) for name, part in members.items()]
    for name in members:
        others = [entry for entry in honest if entry.name != name]
        yield Damage("bomb", archive([*others, dataclasses.replace(bomb, name=name)]))
        lying = dataclasses.replace(bomb, name=name, content_bytes=len(members[name]))
        yield Damage("bomb that lies", archive([*others, lying]), SAME)
        once = stored("", members[name])
        yield Damage("name twice", archive([*honest, dataclasses.replace(once, name=name)]))
        for flags, method, kind in ((1, 0, "encrypted"), (0, 12, "bzip2"), (0, 14, "LZMA"), (0, 99, "unknown method")):
            entry = dataclasses.replace(once, name=name, flags=flags, method=method)
            yield Damage(kind, archive([*others, entry]))
        yield Damage("inside another", archive([*others, dataclasses.replace(once, name=name, lies_at=0)]))
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as zipped_file:
            for other, content in members.items():
                info = zipfile.ZipInfo(other)
                info.create_system, info.external_attr = 3, (0o120777 if other == name else 0o100644) << 16
                zipped_file.writestr(info, content)
        yield Damage("link", file.getvalue())
    for k, name in enumerate(names):
        parts = [dataclasses.replace(entry, name=other) for other, entry in zip(names, inner, strict=True)]
        parts[k] = dataclasses.replace(bomb, name=name)
        yield Damage("bomb in a bomb", packed(members | {KERAS: archive(parts)}))
    nested = packed(members)
    for _ in range(30):
        nested = zipped({"wts.h5.zip": nested})
    yield Damage("nested archives", nested)
    yield Damage("5000 members", zipped({str(number): b"" for number in range(5000)}))
    yield Damage("no members", zipped({}))

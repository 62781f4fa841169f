"""TensorFlow checkpoints: read as TensorFlow reads them, and refused where they are damaged or hostile."""

from __future__ import annotations

import dataclasses
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.checks.archive_files import field, varint
from ptycho_tf_bridge import backend
from ptycho_tf_bridge.archives import tf_checkpoint
from ptycho_tf_bridge.archives.members import open_members
from ptycho_tf_bridge.archives.tf_checkpoint import read_tf_checkpoint
from ptycho_tf_bridge.errors import ArchiveError
from tests.support.checkpoint_files import (
    Tensor,
    block,
    checkpoint,
    footer,
    header,
    sealed,
    table,
    tensor,
)

RNG = np.random.default_rng(3)
ARRAYS = {
    **{
        f"layer_with_weights-{i}/kernel/.ATTRIBUTES/VARIABLE_VALUE": RNG.random((3, 3, 2, i), np.float32)
        for i in range(9)
    },
    "layer_with_weights-22/w": (RNG.random((1, 4, 4, 1)) + 1j).astype(np.complex64),
    "iterations": np.array(-7, np.int64),
    "counts": np.arange(3, dtype=np.int32),
    "double": RNG.random((2, 5)),
}


def same(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(ours) == set(expected)
    for name, array in expected.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape)
        assert ours[name].tobytes() == array.tobytes()


def refused(index: bytes, data: bytes, found: str) -> None:
    with pytest.raises(ArchiveError, match=re.escape(found)) as caught:
        read_tf_checkpoint(index, data, where="wts.h5.zip: variables")
    assert str(caught.value).startswith("wts.h5.zip: variables: found ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_checkpoint_is_read_bit_for_bit() -> None:
    ours = read_tf_checkpoint(*checkpoint({name: tensor(array) for name, array in ARRAYS.items()}), where="here")
    same(ours, ARRAYS)
    for array in ours.values():
        array[...] = 0  # They belong to the caller.


def test_tensors_that_are_no_numbers_are_left_out() -> None:
    tensors = {"text": Tensor(b"\x03abc", (), 7), "half": Tensor(bytes(4), (2,), 19), "kept": tensor(np.arange(3.0))}
    same(read_tf_checkpoint(*checkpoint(tensors), where="here"), {"kept": np.arange(3.0)})


def test_tensorflow_reads_and_writes_the_same(tmp_path: Path) -> None:
    if not backend.is_available():
        pytest.skip("TensorFlow is not installed")
    tf = backend.tensorflow()
    variables = {name.replace("/", "_").replace(".", "_"): tf.Variable(array) for name, array in ARRAYS.items()}
    prefix = str(tmp_path / "variables")
    tf.train.Checkpoint(**variables, text=tf.Variable("words")).write(prefix)
    index, data = (Path(prefix + end).read_bytes() for end in (".index", ".data-00000-of-00001"))
    ours = read_tf_checkpoint(index, data, where="here")
    reader = tf.train.load_checkpoint(prefix)
    theirs = {name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_dtype_map()}
    same(ours, {name: array for name, array in theirs.items() if array.dtype.kind in "fic"})
    assert len(ours) == len(ARRAYS)
    # And TensorFlow takes what the tests write for a checkpoint.
    for end, content in zip(
        (".index", ".data-00000-of-00001"), checkpoint({"a": tensor(ARRAYS["double"])}), strict=True
    ):
        Path(prefix + end).write_bytes(content)
    np.testing.assert_array_equal(tf.train.load_checkpoint(prefix).get_tensor("a"), ARRAYS["double"])


def test_the_archive_of_the_savedmodel_era_holds_the_probe_and_44_weights(shared: Path) -> None:
    with open_members(shared / "archives" / "savedmodel_era" / "wts.h5.zip") as members:
        parts = [members.read(f"autoencoder/variables/variables.{part}") for part in ("index", "data-00000-of-00001")]
    ours = read_tf_checkpoint(*parts, where="here")
    weights = [name for name in ours if re.fullmatch(r"layer_with_weights-\d+/(kernel|bias)/.*", name)]
    assert len(weights) == 44
    assert ours["layer_with_weights-22/w/.ATTRIBUTES/VARIABLE_VALUE"].shape == (1, 64, 64, 1)
    assert sum(ours[name].size for name in weights) == 2_340_208 - 3 * (9 * 64 + 1 + 9 * 60 + 1)


# ------------------------------------------------------------------------------------------------- what is refused

ONE = tensor(np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize(
    ("lies", "found"),
    [
        ({"crc32c": 1}, "the checksum of a is wrong"),
        ({"shape": (2, 2)}, "a of shape (2, 2) of float32 in 24 bytes"),
        ({"shape": (-2, -3)}, "a of shape"),
        ({"shape": (2**62, 2**62, 0)}, "a of shape"),
        ({"shape": (1,) * 9 + (6,)}, "a of shape"),
        ({"dtype": 2}, "of float64 in 24 bytes"),
        ({"offset": 1}, "beyond the data file"),
        ({"offset": -1}, "beyond the data file"),
        ({"size": 2**40}, "more than the 24 bytes"),
        ({"size": -24}, "more than the 24 bytes"),
        ({"shard": 1}, "beyond the data file"),
        ({"extra": field(7, b"")}, "a in slices"),
        ({"extra": b"\x0b"}, "a field of kind 3"),
        ({"extra": field(2, field(3, 1))}, "unknown rank"),
        ({"extra": field(1, b"x")}, "bytes where a number should be"),
        ({"extra": b"\x08"}, "cut short"),
        ({"extra": b"\x08" + b"\xff" * 10}, "more than 64 bits"),
        ({"extra": b"\x12\x7f"}, "cut short"),
        ({"extra": b"\x0d\x00"}, "cut short"),
    ],
)
def test_an_entry_that_lies_is_refused(lies: dict[str, object], found: str) -> None:
    refused(*checkpoint({"a": dataclasses.replace(ONE, **lies)}), found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "found"), [(header(shards=2), "2 data files"), (header(endianness=1), "big-endian"), (b"", "0 data files")]
)
def test_a_checkpoint_of_another_kind_is_refused(head: bytes, found: str) -> None:
    refused(*checkpoint({"a": ONE}, head), found)


def test_tensors_that_share_their_bytes_are_refused() -> None:
    index, _ = checkpoint({"a": ONE, "b": tensor(np.arange(6, dtype=np.float32).reshape(2, 3), offset=0)})
    refused(index, ONE.content, "more than the 24 bytes")


def one_block(content: bytes) -> bytes:
    """An index of one block, whose places are honest."""
    whole = content + block([])
    places = block([(b"z", varint(0) + varint(len(content) - 5))])
    meta = varint(len(content)) + varint(len(block([])) - 5)
    return whole + places + footer(meta + varint(len(whole)) + varint(len(places) - 5))


KEYED = [(b"", header()), (b"a", b"")]


@pytest.mark.parametrize(
    ("index", "found"),
    [
        (b"", "footer"),
        (bytes(100), "footer"),
        (table([]), "no header"),
        (footer(varint(0) * 2 + varint(2**40) + varint(8)), "beyond the index"),
        (footer(varint(0) * 2 + varint(0) + varint(2**63)), "beyond the index"),
        (footer(b"\xff" * 40), "more than 64 bits"),
        (one_block(block(KEYED, compression=1)), "compression 1"),
        (one_block(block(KEYED)[:-1] + b"x"), "the checksum of a block is wrong"),
        (one_block(block(KEYED[::-1])), "keys out of order"),
        (one_block(block([KEYED[0], KEYED[0]])), "keys out of order"),
        (one_block(sealed(b"")), "without its end"),
        (one_block(sealed(struct.pack("<I", 2**31))), "without its end"),
        (one_block(sealed(b"\x05\x01\x00a" + struct.pack("<I", 0))), "beyond its block"),
        (one_block(sealed(b"\x00\x7f\x00a" + struct.pack("<I", 0))), "beyond its block"),
        (one_block(sealed(b"\x00\x01\x7fa" + struct.pack("<I", 0))), "beyond its block"),
        (one_block(sealed(b"\x00" + struct.pack("<I", 0))), "beyond its block"),
        (one_block(block([(b"k" * 1025, b"")])), "beyond its block"),
        (bytes(tf_checkpoint.MAX_INDEX_BYTES + 1), "an index of"),
        (table([(b"", header()), (b"\xff", b"\x08\x01")]), "damaged checkpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_index_that_makes_no_sense_is_refused(index: bytes, found: str) -> None:
    refused(index, b"", found)


def test_many_places_of_one_long_block_are_refused_before_they_take_long() -> None:
    long = sealed(bytes(10**6) + struct.pack("<I", 10**6 // 4))
    places = block([(b"%06d" % i, varint(0) + varint(len(long) - 5)) for i in range(5000)], share=False)
    index = long + places + footer(varint(0) * 2 + varint(len(long)) + varint(len(places) - 5))
    refused(index, b"", "blocks of more bytes than the index has")


def test_more_entries_than_a_network_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf_checkpoint, "MAX_ENTRIES", 100)
    refused(table([(b"%06d" % i, b"") for i in range(101)]), b"", "more than 100")


INDEX, DATA = checkpoint({name: tensor(array) for name, array in ARRAYS.items()})


@pytest.mark.parametrize("length", [0, 1, 47, 48, 100, len(INDEX) - 1])
def test_a_truncated_index_is_refused(length: int) -> None:
    refused(INDEX[:length], DATA, "footer")


def test_a_truncated_data_file_is_refused() -> None:
    refused(INDEX, DATA[:-1], f"more than the {len(DATA) - 1} bytes")
    refused(INDEX, b"", "more than the 0 bytes")


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(INDEX) + len(DATA) - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_an_error_or_touches_nothing(position: int, bit: int) -> None:
    damaged = bytearray(INDEX + DATA)
    damaged[position] ^= 1 << bit
    try:
        ours = read_tf_checkpoint(bytes(damaged[: len(INDEX)]), bytes(damaged[len(INDEX) :]), where="here")
    except ArchiveError:
        return
    same(ours, ARRAYS)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=60), st.binary(max_size=40))
def test_random_bytes_are_an_error(entries: bytes, value: bytes, places: bytes) -> None:
    for index in (entries, one_block(sealed(entries)), table([(b"", header()), (b"a", value)]), footer(places)):
        try:
            ours = read_tf_checkpoint(index, entries, where="here")
        except ArchiveError:
            continue
        assert sum(array.nbytes for array in ours.values()) <= len(entries)

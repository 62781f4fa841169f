"""NPZ files: read as NumPy reads them, bounded in memory, and refused where they are hostile or damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.files import npz as subject
from ptycho_torch.files.npz import MAX_HEADER_BYTES, MAX_MEMBERS, NpzFile, listed
from tests.support.archives.zip_files import (
    MIB,
    Entry,
    archive,
    deflated,
    npy_bytes,
    npy_header,
    refused,
    stored,
    write_archive,
    zeros_bomb,
)

RNG = np.random.default_rng(7)

ARRAYS: dict[str, np.ndarray] = {
    "float32": RNG.random((5, 6, 7), np.float32),
    "float16": RNG.random((5, 6)).astype(np.float16),
    "big-endian float64": RNG.random((3, 4)).astype(">f8"),
    "Fortran order": np.asfortranarray(RNG.random((5, 6, 7))),
    "Fortran order, big-endian": np.asfortranarray(RNG.random((4, 9))).astype(">c16"),
    "not contiguous": RNG.random((9, 8))[::2, 1::3],
    "complex64": RNG.random((4, 4)).astype(np.complex64),
    "whole numbers": RNG.integers(-9, 9, (7,), np.int16),
    "flags": RNG.random((5, 5)) > 0.5,
    "0-d": np.array(2.5),
    "0-d text": np.array("amplitude"),
    "text": np.array([["a", "bcd"], ["Δx", ""]]),
    "bytes": np.array([b"probe", b""]),
    "structure": np.array([(1, 2.5), (3, 4.5)], [("row", "<i4"), ("value", ">f8")]),
    "empty": np.zeros(0, np.float32),
    "no columns": np.zeros((3, 0)),
    "no rows": np.zeros((0, 4), np.complex64),
    "above one header's length": RNG.random(100_000),
}
WRITERS = {"stored": np.savez, "deflated": np.savez_compressed}
PACKERS = {"stored": stored, "deflated": deflated}


def theirs(path: Path, key: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        array: np.ndarray = file[key]
    return array


def assert_same_array(ours: np.ndarray, expected: np.ndarray) -> None:
    assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
    assert ours.flags.f_contiguous == expected.flags.f_contiguous
    np.testing.assert_array_equal(ours, expected)


# ------------------------------------------------------------------------------------------------- what is intact


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ARRAYS)
def test_a_member_is_read_as_numpy_reads_it_and_can_be_written_to(tmp_path: Path, name: str, writer: str) -> None:
    path = tmp_path / "file.npz"
    WRITERS[writer](path, before=np.arange(3), array=ARRAYS[name], behind=np.arange(4))
    ours = NpzFile(path).read("array")
    assert_same_array(ours, theirs(path, "array"))
    ours[...] = ours.flat[0] if ours.size else 0
    header = NpzFile(path).header("array")
    assert (header.shape, header.dtype) == (ARRAYS[name].shape, ARRAYS[name].dtype)


DTYPES = ("<f2", "<f4", ">f4", "<f8", ">f8", "<c8", ">c16", "|u1", "<u2", ">i8", "|b1", "<U5")


@pytest.mark.parity_clause("STEP-DATA", "NPZ-01")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_members_of_any_type_order_and_shape_are_read_whole_and_in_rows(
    tmp_path: Path, dtype: str, order: str, writer: str
) -> None:
    rng, members = np.random.default_rng(31), {}
    for shape in ((7, 5, 3), (5, 4), (6,), ()):
        numbers = rng.integers(0, 100, shape) + 1j * rng.integers(1, 100, shape)
        values = numbers if np.dtype(dtype).kind == "c" else numbers.real
        array = np.asarray(values > 50 if dtype == "|b1" else values).astype(dtype)
        members[str(shape)] = array if order == "C" else np.asarray(array, order="F")
    path = tmp_path / "file.npz"
    WRITERS[writer](path, **members)
    with zipfile.ZipFile(path) as archive:
        contents = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    file = NpzFile(path)
    assert {each.key: (each.crc32, each.content_bytes) for each in file.digest()} == {
        key: (zlib.crc32(content), len(content)) for key, content in contents.items()
    }
    for key, array in members.items():
        header, fortran = file.header(key), array.flags.f_contiguous and not array.flags.c_contiguous
        assert (header.shape, header.content_bytes, header.fortran_order) == (array.shape, array.nbytes, fortran)
        assert header.dtype == array.dtype
        assert_same_array(file.read(key), array)
        if array.ndim:
            two_rows = 2 * array.nbytes // len(array)
            np.testing.assert_array_equal(np.concatenate([*map(np.array, file.stream(key, two_rows))]), array)


@pytest.mark.parametrize("packer", PACKERS)
def test_headers_of_version_2_and_of_python_2_are_read(tmp_path: Path, packer: str) -> None:
    array = RNG.random((3, 4))
    python_2 = npy_header((3, 4), "<f8").replace(b"(3, 4)", b"(3L,4)") + array.tobytes()
    path = write_archive(
        tmp_path / "file.npz",
        PACKERS[packer]("second", npy_bytes(array, version=(2, 0))),
        PACKERS[packer]("ancient", python_2),
    )
    for key in ("second", "ancient"):
        np.testing.assert_array_equal(NpzFile(path).read(key), array)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["float32", "Fortran order", "big-endian float64", "whole numbers", "no rows"])
@pytest.mark.parametrize("chunk_bytes", [1, 100, 337, 10**9])
def test_a_stream_yields_all_rows_in_order_and_bounded(
    tmp_path: Path, name: str, writer: str, chunk_bytes: int
) -> None:
    path = tmp_path / "file.npz"
    WRITERS[writer](path, array=ARRAYS[name])
    array = ARRAYS[name]
    row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
    chunks = [chunk.copy() for chunk in NpzFile(path).stream("array", chunk_bytes)]
    assert all(chunk.dtype == array.dtype and chunk.nbytes <= max(chunk_bytes, row_bytes) for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate([array[:0], *chunks]), array)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_chunk_stays_as_it_is_for_depth_draws(tmp_path: Path, writer: str, order: str, depth: int) -> None:
    array = np.asarray(RNG.random((11, 4, 4)), order=order)  # type: ignore[call-overload]
    path = tmp_path / "file.npz"
    WRITERS[writer](path, array=array)
    window: list[tuple[int, np.ndarray]] = []
    row = 0
    for chunk in NpzFile(path).stream("array", 2 * 4 * 4 * 8, depth):
        window = [*window, (row, chunk)][-depth:]
        row += len(chunk)
        for first, held in window:
            np.testing.assert_array_equal(held, array[first : first + len(held)])
    assert row == 11


def test_a_stream_in_fortran_order_without_content_has_no_chunks(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "file.npz", stored("array", npy_header((0, 3), fortran_order=True)))
    assert list(NpzFile(path).stream("array")) == []
    assert NpzFile(path).read("array").shape == (0, 3)


def test_a_stream_that_is_left_early_leaves_no_open_file(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    np.savez_compressed(path, array=ARRAYS["Fortran order"], other=ARRAYS["float32"])
    for key in ("array", "other"):
        before = len(os.listdir("/dev/fd"))
        stream = NpzFile(path).stream(key, 1)
        next(stream)
        del stream
        assert len(os.listdir("/dev/fd")) == before


def test_members_without_the_suffix_behind_a_prefix_or_before_a_comment_are_found(tmp_path: Path) -> None:
    array = RNG.random((3, 4))
    entry = dataclasses.replace(stored("x", npy_bytes(array)), name="bare")
    path = tmp_path / "file.npz"
    path.write_bytes(archive([entry, deflated("array", npy_bytes(array))], comment=b"c" * 65535, before=b"#!" * 50))
    assert NpzFile(path).keys == ("bare", "array")
    for key in ("bare", "array"):
        assert_same_array(NpzFile(path).read(key), array)


def test_a_zip64_archive_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # From this length on zipfile writes 64-bit fields, as it does for real from 2 GiB on.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    path = tmp_path / "file.npz"
    np.savez(path, array=ARRAYS["float32"], other=ARRAYS["complex64"])
    monkeypatch.undo()
    assert b"PK\6\6" in path.read_bytes()
    assert_same_array(NpzFile(path).read("other"), ARRAYS["complex64"])


def test_the_digest_is_what_the_directory_says(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    np.savez_compressed(path, **{name: ARRAYS[name] for name in ("0-d", "float32")})
    with zipfile.ZipFile(path) as file:
        infos = {info.filename: info for info in file.infolist()}
    digest = NpzFile(path).digest()
    assert [entry.key for entry in digest] == ["0-d", "float32"]
    for entry in digest:
        info = infos[f"{entry.key}.npy"]
        assert (entry.crc32, entry.content_bytes, entry.packed_bytes) == (info.CRC, info.file_size, info.compress_size)


def test_the_directory_is_parsed_once_however_many_members_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "file.npz", *[stored(f"x{n}", npy_bytes(np.arange(2))) for n in range(100)])
    parsed = []

    class Counted(zipfile.ZipFile):
        def __init__(self, *args: object, **kwargs: object) -> None:
            parsed.append(args)
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    file = NpzFile(path)
    assert all(len(file.read(key)) == 2 for key in file.keys)
    assert len(parsed) == 1


# ------------------------------------------------------------------------------------------------- what is damaged


def drain(path: Path, key: str = "array") -> list[int]:
    return [len(chunk) for chunk in NpzFile(path).stream(key, 64)]


@pytest.mark.parametrize("act", [lambda path: NpzFile(path).read("array"), drain], ids=["read", "stream"])
@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_content_that_does_not_match_its_checksum_is_refused(
    tmp_path: Path, act: Callable[[Path], object], packer: str, order: str
) -> None:
    content = npy_bytes(np.asarray(RNG.random((40, 9)), order=order))  # type: ignore[call-overload]
    entry = PACKERS[packer]("array", content)
    path = write_archive(tmp_path / "file.npz", dataclasses.replace(entry, crc32=entry.crc32 ^ 1))
    error = refused("NPZ-01", path, lambda: act(path), key="array")
    assert "CRC-32" in error.found


def test_a_stream_does_not_end_before_the_checksum_was_compared(tmp_path: Path) -> None:
    content = bytearray(npy_bytes(np.zeros(40)))
    entry = stored("array", bytes(content))
    content[-1] ^= 1
    path = write_archive(tmp_path / "file.npz", dataclasses.replace(entry, packed=bytes(content)))
    seen = []

    def watch() -> None:
        seen.extend(len(chunk) for chunk in NpzFile(path).stream("array", 64))

    refused("NPZ-01", path, watch, key="array")
    assert sum(seen) < 40  # The chunk with the damage is not handed out.


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = archive([stored("array", npy_bytes(np.arange(30))), deflated("other", npy_bytes(np.arange(30)))])
    path = tmp_path / "file.npz"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused("NPZ-01", path, lambda: NpzFile(path))


def overlapping() -> dict[str, list[Entry]]:
    first, second = stored("first", npy_bytes(np.arange(50))), stored("second", npy_bytes(np.arange(50)))
    inside = archive([first])
    return {
        "two names for one place": [first, dataclasses.replace(second, lies_at=0)],
        "longer than its place": [dataclasses.replace(first, content_bytes=10**6), second],
        "one inside another": [stored("outer", inside), dataclasses.replace(first, lies_at=39)],
        "beyond the directory": [first, dataclasses.replace(second, lies_at=10**6)],
    }


@pytest.mark.parametrize("name", overlapping())
def test_members_that_overlap_are_refused_before_they_are_read(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / "file.npz", *overlapping()[name])
    refused("NPZ-01", path, lambda: NpzFile(path))


def test_a_local_header_that_moves_the_content_into_the_next_member_is_refused(tmp_path: Path) -> None:
    array = stored("array", npy_bytes(np.arange(50)))
    path = write_archive(tmp_path / "file.npz", array, stored("other", npy_bytes(np.arange(50))))
    content = bytearray(path.read_bytes())
    content[28:30] = struct.pack("<H", 60)  # The extra field's length, of which the directory knows nothing.
    path.write_bytes(content)
    error = refused("NPZ-01", path, lambda: NpzFile(path).read("array"), key="array")
    assert "overlaps" in error.found


@pytest.mark.parametrize(
    ("lie", "word"),
    [
        ({"flags": 0x1}, "encrypted"),
        ({"flags": 0x40}, "encrypted"),
        ({"flags": 0x20}, "patched"),
        ({"method": zipfile.ZIP_BZIP2}, "compression 12"),
        ({"method": zipfile.ZIP_LZMA}, "compression 14"),
        ({"content_bytes": 10**6}, "two lengths"),
    ],
)
def test_members_that_numpy_never_writes_are_refused(tmp_path: Path, lie: dict[str, int], word: str) -> None:
    path = write_archive(tmp_path / "file.npz", stored("array", npy_bytes(np.arange(5)), **lie))
    assert word in refused("NPZ-01", path, lambda: NpzFile(path), key="array").found


@pytest.mark.parametrize(("method", "number"), [(zipfile.ZIP_BZIP2, 12), (zipfile.ZIP_LZMA, 14)])
def test_intact_members_of_other_compressions_are_refused(tmp_path: Path, method: int, number: int) -> None:
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("array.npy", npy_bytes(np.arange(500)))
    assert f"compression {number}" in refused("NPZ-01", path, lambda: NpzFile(path), key="array").found


def test_deflated_content_of_another_length_than_stated_is_refused(tmp_path: Path) -> None:
    content = npy_bytes(np.arange(50))
    longer, shorter = content + bytes(8), content[:-8]
    for packed in (longer, shorter):
        # Checksum and length agree with what the header asks for; the packed bytes do not.
        lie = dataclasses.replace(deflated("array", packed), content_bytes=len(content), crc32=zlib.crc32(content))
        path = write_archive(tmp_path / "file.npz", lie)
        refused("NPZ-01", path, lambda path=path: NpzFile(path).read("array"), key="array")
        refused("NPZ-01", path, lambda path=path: drain(path), key="array")


def test_packed_bytes_that_are_no_deflate_are_refused(tmp_path: Path) -> None:
    entry = dataclasses.replace(deflated("array", npy_bytes(np.arange(500))), packed=b"\xff" * 300)
    path = write_archive(tmp_path / "file.npz", entry)
    refused("NPZ-01", path, lambda: NpzFile(path).header("array"), key="array")


@pytest.mark.parametrize(
    "entries",
    [
        [stored("array", npy_bytes(np.arange(5))), stored("array", npy_bytes(np.arange(6)))],
        [
            stored("array", npy_bytes(np.arange(5))),
            dataclasses.replace(stored("x", npy_bytes(np.arange(6))), name="array"),
        ],
    ],
    ids=["array.npy and array.npy", "array.npy and array"],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, entries: list[Entry]) -> None:
    path = write_archive(tmp_path / "file.npz", *entries)
    assert "twice" in refused("NPZ-01", path, lambda: NpzFile(path)).found


def test_a_member_whose_local_header_names_another_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "file.npz", stored("array", npy_bytes(np.arange(5)), local_name="other.npy"))
    refused("NPZ-01", path, lambda: NpzFile(path).read("array"), key="array")


def test_a_missing_key_names_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    np.savez(path, one=1, two=2)
    error = refused("NPZ-01", path, lambda: NpzFile(path).read("three"), key="three")
    assert "one, two" in error.found
    assert "two" in NpzFile(path)
    assert "three" not in NpzFile(path)


HEADERS = {
    "much more than is there": npy_header((2**40,)),
    "more than a number holds": npy_header((2**63, 2**63)),
    "less than is there": npy_header((1,)),
    "a negative length": npy_header((-5,)),
    "negative lengths whose product fits": npy_header((-5, -2)),
    "a shape that is none": npy_header("many"),
    "a type that is none": npy_header((10,), "<f5"),
    "text of no length": npy_header((10,), "<U0"),
    "no dictionary": b"\x93NUMPY\1\0\4\0ooo\n",
    "code that is no literal": b"\x93NUMPY\1\0\x0d\0__import__()\n",
    "signs without end": b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"-" * 8999 + b"1",
    "brackets without end": b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"[" * 9000,
    "a longer header than NumPy takes": b"\x93NUMPY\1\0" + struct.pack("<H", 12000) + b" " * 12000,
    "a header of 4 GiB": b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1),
    "format 3": npy_bytes(np.arange(10, dtype="<f4"), version=(3, 0))[:-40],
    "another format": b"\x93HDF\r\n\x1a\n" + bytes(80),
    "nothing": b"",
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_fit_its_member_is_refused(tmp_path: Path, name: str, packer: str) -> None:
    path = write_archive(
        tmp_path / "file.npz", PACKERS[packer]("array", HEADERS[name] + bytes(40) * (name != "nothing"))
    )
    refused("NPZ-01", path, lambda: NpzFile(path).header("array"), key="array")


def test_a_type_that_hides_a_shape_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "file.npz", stored("array", npy_header((2,), ("<f4", (3,))) + bytes(24)))
    refused("NPZ-01", path, lambda: NpzFile(path).read("array"), key="array")


# ------------------------------------------------------------------------------------------------- what is too large


def test_a_member_that_unpacks_to_a_thousand_times_its_size_is_refused_by_its_directory(tmp_path: Path) -> None:
    bomb = zeros_bomb("array", (300, 512, 512))
    assert bomb.content_bytes > 900 * len(bomb.packed)
    path = write_archive(tmp_path / "file.npz", bomb)
    with bounded(MIB):
        for act in (NpzFile(path).header, NpzFile(path).read, lambda key: drain(path, key)):
            error = refused("NPZ-03", path, lambda act=act: act("array"), key="array")
            assert f"{len(bomb.packed)} bytes that unpack to {bomb.content_bytes}" in error.found


def test_dark_members_of_moderate_length_may_be_packed_as_well_as_they_can(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "file.npz", zeros_bomb("array", (20, 512, 512)))
    array = NpzFile(path).read("array")
    assert array.shape == (20, 512, 512)
    assert not array.any()


def promising(shape: tuple[int, ...]) -> Entry:
    """A member whose directory promises what its header asks for, at a ratio that a measurement may have."""
    content_bytes = 4 * int(np.prod(shape))
    packed = deflated("array", npy_header(shape) + bytes(MAX_HEADER_BYTES)).packed
    packed += bytes(content_bytes // 249 - len(packed))
    return Entry("array.npy", packed, len(npy_header(shape)) + content_bytes, 0, method=zipfile.ZIP_DEFLATED)


def test_a_whole_member_above_the_limit_is_refused_before_memory_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "file.npz", promising((2**16, 2**12 + 1)))
    monkeypatch.setattr(subject, "MAX_READ_BYTES", 2**30)
    with bounded(MIB):
        assert "1074003968 bytes" in refused("NPZ-03", path, lambda: NpzFile(path).read("array"), key="array").found


def test_a_row_above_1_gib_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "file.npz", promising((1, 2**28 + 1)))
    with bounded(MIB):
        assert "rows of 1073741828 bytes" in refused("NPZ-03", path, lambda: drain(path), key="array").found


def test_a_header_never_asks_for_more_memory_than_headers_need(tmp_path: Path) -> None:
    hostile = b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b" " * (40 * MIB)
    path = write_archive(tmp_path / "file.npz", deflated("array", hostile))
    with bounded(MIB):
        refused("NPZ-01", path, lambda: NpzFile(path).header("array"), key="array")


def directory_of(count: int) -> bytes:
    return archive([stored(f"x{number}", b"") for number in range(count)])


def test_a_directory_of_more_members_than_allowed_is_refused_unparsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.npz"
    path.write_bytes(directory_of(MAX_MEMBERS))
    assert len(NpzFile(path).keys) == MAX_MEMBERS
    path.write_bytes(directory_of(MAX_MEMBERS + 1))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert f"{MAX_MEMBERS + 1} members" in refused("NPZ-03", path, lambda: NpzFile(path)).found


def test_a_directory_that_counts_itself_wrong_is_refused_once_parsed(tmp_path: Path) -> None:
    content = bytearray(directory_of(MAX_MEMBERS + 1))
    content[-14:-10] = struct.pack("<HH", 1, 1)
    path = tmp_path / "file.npz"
    path.write_bytes(content)
    refused("NPZ-03", path, lambda: NpzFile(path))


@pytest.mark.parametrize("locator", [0, 10**12], ids=["pointing elsewhere", "pointing beyond the file"])
def test_a_zip64_locator_that_does_not_point_at_its_record_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locator: int
) -> None:
    content = archive([stored("array", npy_bytes(np.arange(5)))])
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 10**6, 10**6, 46 * 10**6, 0)
    pointer = b"PK\6\7" + struct.pack("<IQI", 0, locator, 1)
    path = tmp_path / "file.npz"
    path.write_bytes(content[:-22] + record + pointer + content[-22:])
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "ZIP64 locator" in refused("NPZ-01", path, lambda: NpzFile(path)).found


@contextlib.contextmanager
def bounded(limit_bytes: int) -> Iterator[None]:
    """Fail if more memory than this is asked for at once; NumPy and zlib report theirs as Python does."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit_bytes, f"{peak} bytes"


@pytest.mark.parametrize("kind", ["stored", "deflated", "Fortran order"])
def test_streaming_200_mb_takes_less_than_40_mb(tmp_path: Path, kind: str) -> None:
    shape, path = (200, 512, 512), tmp_path / "file.npz"
    if kind == "deflated":
        write_archive(path, zeros_bomb("array", shape))
    else:
        np.savez(path, array=np.zeros(shape, np.float32, order="F" if kind == "Fortran order" else "C"))
    with bounded(40 * 10**6):
        count = sum(len(chunk) for chunk in NpzFile(path).stream("array", depth=2))
    assert count == 200


# ------------------------------------------------------------------------------------------------- pickles


class LeavesTrace:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._trace),)


@pytest.mark.parametrize("writer", WRITERS)
def test_objects_are_refused_and_never_unpickled(tmp_path: Path, writer: str) -> None:
    path, trace = tmp_path / "file.npz", tmp_path / "trace"
    evil = np.array([LeavesTrace(trace)], object)
    WRITERS[writer](path, array=evil, _metadata=evil, plain=np.arange(3))
    file = NpzFile(path)
    for key in ("array", "_metadata"):
        for act in (file.header, file.read, lambda key: drain(path, key)):
            error = refused("NPZ-02", path, lambda act=act, key=key: act(key), key=key)
            assert "unpickling" in error.found
    assert np.array_equal(file.read("plain"), np.arange(3))
    assert not trace.exists()
    # That it would have left a trace:
    with np.load(path, allow_pickle=True) as opened:
        assert opened["array"].shape == (1,)
    assert trace.exists()


def test_objects_inside_structures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    np.savez(path, array=np.array([(1, None)], [("number", "i4"), ("thing", "O")]))
    refused("NPZ-02", path, lambda: NpzFile(path).read("array"), key="array")


def test_a_damaged_header_is_not_taken_for_a_pickle(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "file.npz", stored("array", b"no header"))
    refused("NPZ-01", path, lambda: NpzFile(path).header("array"), key="array")


# ------------------------------------------------------------------------------------------------- what is no file


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "missing.npz"
    assert "No such file" in refused("NPZ-01", path, lambda: NpzFile(path)).found


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\5\6", b"text " * 100, b"PK\5\6" + bytes(18)])
def test_a_file_that_is_no_archive_is_refused_or_has_no_members(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.npz"
    path.write_bytes(content)
    if len(content) == 22:  # The smallest archive, and an empty one.
        assert NpzFile(path).keys == ()
        assert "present: nothing" in refused("NPZ-01", path, lambda: NpzFile(path).read("array")).found
    else:
        refused("NPZ-01", path, lambda: NpzFile(path))


def test_folders_pipes_and_devices_are_refused_unopened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    # Whoever opens a pipe into which nobody writes waits for ever; this end lets the test fail in place of that.
    end = os.open(pipe, os.O_RDWR)
    try:
        for path in (tmp_path, pipe, Path("/dev/zero")):
            assert "no regular file" in refused("NPZ-01", path, lambda path=path: NpzFile(path)).found
    finally:
        os.close(end)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Act as a user whom file modes bind."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    np.savez(path, array=np.arange(3))
    refused("NPZ-01", path, lambda: NpzFile(path).read("missing"))  # The contract is loaded now.
    path.chmod(0)
    with without_privileges():
        assert "denied" in refused("NPZ-01", path, lambda: NpzFile(path)).found


def test_a_file_that_vanishes_or_shrinks_between_calls_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    np.savez(path, array=np.arange(300))
    file = NpzFile(path)
    path.write_bytes(path.read_bytes()[:500])
    refused("NPZ-01", path, lambda: file.read("array"), key="array")
    path.unlink()
    refused("NPZ-01", path, lambda: file.read("array"), key="array")


# ------------------------------------------------------------------------------------------------- messages


HOSTILE_NAME = "\x1b[2J\r\nTraceback (most recent call last)\u202e"


def test_messages_stay_one_line_whatever_members_are_called(tmp_path: Path) -> None:
    path = write_archive(
        tmp_path / "file.npz",
        stored(HOSTILE_NAME, b"no header", flags=0x800),
        stored("n" * 5000, npy_bytes(np.arange(3))),
        *[stored(f"x{number}", b"") for number in range(50)],
    )
    file = NpzFile(path)
    error = refused("NPZ-01", path, lambda: file.read("array"), key="array")
    assert "Traceback" in error.found
    assert "x9" in error.found
    assert "x40" not in error.found
    refused("NPZ-01", path, lambda: file.read(HOSTILE_NAME), key=HOSTILE_NAME)


def test_messages_do_not_repeat_what_hostile_headers_say_at_length(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "file.npz", stored("array", npy_header("a\nb" * 3000) + bytes(4)))
    error = refused("NPZ-01", path, lambda: NpzFile(path).read("array"), key="array")
    assert len(error.found) < 300
    long = b"\x93NUMPY\1\0" + struct.pack("<H", 12000) + b" " * 12000
    path = write_archive(tmp_path / "other.npz", stored("array", long))
    # NumPy's own words go on for two more lines, which advise to allow pickles.
    assert "allow_pickle" not in str(refused("NPZ-01", path, lambda: NpzFile(path).read("array"), key="array"))


def test_names_are_listed_up_to_a_dozen() -> None:
    assert listed([]) == "nothing"
    assert listed(["a", "b\tc"]) == "a, b c"
    assert listed([str(number) for number in range(13)]).endswith("10, 11, …")


def test_the_limits_are_those_of_the_contract() -> None:
    assert (subject.MAX_MEMBERS, subject.MAX_READ_BYTES) == (4096, 4 * 2**30)
    assert (subject.MAX_RATIO, subject.RATIO_FROM_BYTES) == (250, 256 * MIB)

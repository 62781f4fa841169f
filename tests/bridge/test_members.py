"""Members of archives: of a ZIP file, of a ZIP in memory, of a folder; honest ones are read, all others refused."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import stat
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_tf_bridge.archives import members as subject
from ptycho_tf_bridge.archives.members import open_members, open_members_of
from ptycho_tf_bridge.errors import ArchiveError
from tests.support.archives.zip_files import MIB, Entry, archive, deflate, stored, zeros_bomb

CONTENTS = {
    "manifest.dill": b"manifest",
    "autoencoder/params.dill": b"params" * 1000,
    "autoencoder/empty": b"",
    "Δ/probe": bytes(range(256)),
}


def write(path: Path, contents: dict[str, bytes] = CONTENTS, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path


def entry(name: str, content: bytes = b"content", **lies: object) -> Entry:
    return dataclasses.replace(stored("", content), name=name, **lies)  # type: ignore[arg-type]


def read_all(data: bytes, name: str | None = None) -> None:
    with open_members_of(data, "wts.h5.zip") as members:
        for one in members.names if name is None else [name]:
            members.read(one)


def refused(data: bytes, found: str, name: str | None = None) -> None:
    """Opening, or reading the member of this name, ends with one clear line."""
    with pytest.raises(ArchiveError) as caught:
        read_all(data, name)
    message = str(caught.value)
    assert found in message
    assert message.startswith(f"wts.h5.zip: {name}: found" if name else "wts.h5.zip:"), message
    assert message.isprintable()
    assert len(message) < 1200


# ------------------------------------------------------------------------------------------------- what is intact


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_from_a_file_from_memory_and_from_a_folder(tmp_path: Path, method: int) -> None:
    path = write(tmp_path / "wts.h5.zip", method=method)
    folder = tmp_path / "wts.h5"
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for opened in (open_members(path), open_members_of(path.read_bytes(), "here"), open_members(folder)):
        with opened as members:
            assert set(members.names) == set(CONTENTS)
            assert {name: members.read(name) for name in members.names} == CONTENTS
            assert {name: members.size(name) for name in members.names} == {n: len(c) for n, c in CONTENTS.items()}
            assert "manifest.dill" in members
            assert "manifest" not in members


def test_folders_in_a_zip_are_no_members(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"autoencoder/": b"", "autoencoder/params.dill": b"x"})
    with open_members(path) as members:
        assert members.names == ("autoencoder/params.dill",)


def test_the_digest_of_a_file_is_its_sha_256(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    for opened in (open_members(path), open_members_of(path.read_bytes(), "here")):
        with opened as members:
            members.read("manifest.dill")
            assert members.digest == expected


def test_the_digest_of_a_folder_is_that_of_names_and_contents(tmp_path: Path) -> None:
    digests = []
    for number, files in enumerate([{"a": "1", "b": "2"}, {"b": "2", "a": "1"}, {"a": "2", "b": "1"}, {"a": "1b2"}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        with open_members(folder) as members:
            digests.append(members.digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_an_archive_that_is_exchanged_while_it_is_read_stays_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    with open_members(path) as members:
        write(tmp_path / "other.zip", {"manifest.dill": b"another"})
        os.replace(tmp_path / "other.zip", path)
        assert members.read("manifest.dill") == b"manifest"


def test_a_part_of_an_archive_is_not_taken_for_one(tmp_path: Path) -> None:
    """Cut behind a ZIP file that it holds, an archive ends as that one does."""
    inner = archive([entry("config.json")])
    whole = archive([entry("model.keras", inner), entry("params.dill")])
    end = whole.index(inner) + len(inner)
    refused(whole[:end], "bytes before the archive")
    refused(whole[: end + 5], "bytes before the archive")
    refused(b"#!/bin/sh\n" + inner, "10 bytes before the archive")


# ------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../.bashrc",
        "autoencoder/../../x",
        "autoencoder/..",
        "./manifest.dill",
        "a//b",
        "..\\..\\x",
        "autoencoder\\params.dill",
        "C:/x",
        "c:x",
        "\\\\server\\share",
        "",
        "/",
        "a/",
        "manifest.dill\0.txt",
        "a\nb",
        "a\x1b[2Jb",
        "a\u202eb",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    entries = [stored("x", b""), entry(name, flags=0x800)]
    refused(archive(entries), "a folder of 7 bytes" if name == "a/" else "a name that leads elsewhere")


@pytest.mark.parametrize("name", ["n" * 600, "a/" * 17 + "b"])
def test_names_of_no_end_are_refused(name: str) -> None:
    refused(archive([entry(name)]), "a name of")


def test_a_name_that_is_there_twice_is_refused() -> None:
    refused(archive([entry("a"), entry("a", b"other")]), "the same name twice")
    refused(archive([entry("a/", b""), entry("a", b"other")]), "the same name twice")
    refused(archive([entry("a"), entry("a/b", b"other")]), "as file and as folder")


def with_mode(mode: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        info = zipfile.ZipInfo("params.dill")
        info.create_system = 3
        info.external_attr = mode << 16
        zipped.writestr(info, b"/etc/passwd")
    return file.getvalue()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR])
def test_links_and_special_files_are_refused(kind: int) -> None:
    refused(with_mode(kind | 0o777), "a link" if kind == stat.S_IFLNK else "a special file")
    with open_members_of(with_mode(stat.S_IFREG | 0o644), "here") as members:
        assert members.read("params.dill") == b"/etc/passwd"


# ------------------------------------------------------------------------------------------------- sizes


def honest(content: bytes, **lies: object) -> Entry:
    return entry("a", content, packed=deflate(content), method=zipfile.ZIP_DEFLATED, **lies)


def test_a_bomb_is_refused_by_its_directory() -> None:
    bomb = dataclasses.replace(zeros_bomb("a", (100, 512, 512)), name="a")
    tracemalloc.start()
    try:
        refused(archive([bomb]), f"bytes that unpack to {bomb.content_bytes}")
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_small_members_may_be_packed_as_well_as_they_can() -> None:
    with open_members_of(archive([honest(bytes(4 * MIB))]), "here") as members:
        assert members.read("a") == bytes(4 * MIB)


@pytest.mark.parametrize("stated", [0, 1, 100, 10**6 - 1])
def test_a_member_that_unpacks_to_more_than_it_states_is_refused(stated: int) -> None:
    tracemalloc.start()
    try:
        refused(archive([honest(bytes(10**6), content_bytes=stated)]), "damaged content", "a")
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_a_member_that_unpacks_to_less_than_it_states_is_refused() -> None:
    refused(archive([honest(b"abc", content_bytes=10**6)]), "3 bytes of 1000000 are there", "a")


def test_limits_hold_for_members_and_for_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_members_of(archive([entry("a", bytes(100))]), "here") as members:
        assert members.read("a", 100) == bytes(100)
        with pytest.raises(ArchiveError, match="100 bytes; expected at most 99"):
            members.read("a", 99)
        monkeypatch.setattr(subject, "MAX_READ_BYTES", 99)
        with pytest.raises(ArchiveError, match="100 bytes; expected at most 99"):
            members.read("a")
    three = archive([entry(name, bytes(100)) for name in "abc"])
    monkeypatch.setattr(subject, "MAX_TOTAL_BYTES", 299)
    refused(three, "300 bytes unpacked")
    monkeypatch.setattr(subject, "MAX_MEMBER_BYTES", 99)
    refused(three, "100 bytes")
    monkeypatch.setattr(subject, "MAX_MEMBERS", 2)
    refused(three, "a directory of 3 members")


def test_members_that_overlap_are_refused() -> None:
    content = entry("a", bytes(1000))
    refused(archive([content, entry("b", bytes(1000), lies_at=0)]), "members that overlap")
    # Each member holds all behind it, as in a bomb that needs no second layer.
    inner = archive([entry("b", bytes(1000))])[: -22 - 47]
    refused(archive([entry("a", inner), entry("b", bytes(1000), lies_at=31)]), "overlap")


def test_a_zip_that_holds_itself_is_unpacked_no_further_than_asked() -> None:
    data = archive([entry("a.zip", b"end")])
    for _ in range(50):
        data = archive([entry("a.zip", data)])
    with open_members_of(data, "here") as members:
        assert members.names == ("a.zip",)


# ------------------------------------------------------------------------------------------------- kinds and damage


@pytest.mark.parametrize(
    ("lies", "found"),
    [
        ({"flags": 1}, "an encrypted or patched member"),
        ({"method": 12}, "compression 12"),
        ({"method": 14}, "compression 14"),
        ({"method": 99}, "compression 99"),
        ({"content_bytes": 6}, "a stored member of two lengths"),
        ({"lies_at": 10**6}, "overlap or reach beyond"),
    ],
)
def test_members_of_foreign_kinds_are_refused(lies: dict[str, object], found: str) -> None:
    refused(archive([entry("a", **lies)]), found)


@pytest.mark.parametrize(
    ("lies", "found"),
    [({"crc32": 1}, "CRC-32"), ({"local_name": "b"}, "no such local header"), ({"local_extra": bytes(9)}, "")],
)
def test_members_whose_headers_disagree_are_refused(lies: dict[str, object], found: str) -> None:
    data = archive([entry("a", **lies)])
    if found:
        refused(data, found, "a")
    else:
        with open_members_of(data, "here") as members:
            assert members.read("a") == b"content"


def test_a_missing_member_is_named_with_those_that_are_there() -> None:
    refused(archive([entry("a")]), "no such member; present: a", "manifest.dill")


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"text " * 100, b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    refused(content, "no ZIP directory at the end" if content.startswith(b"PK") else "no ZIP archive")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "a.zip").read_bytes()
    for length in range(len(data)):
        refused(data[:length], "")


def test_what_is_neither_file_nor_folder_is_refused_unopened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, found in (
        (pipe, "neither file nor folder"),
        (Path("/dev/zero"), "neither"),
        (tmp_path / "no", "no such"),
        (pipe / "wts.h5.zip", "no such"),
    ):
        with pytest.raises(ArchiveError, match=found), open_members(path):
            pass


# ------------------------------------------------------------------------------------------------- folders


def refused_folder(folder: Path, found: str) -> None:
    with pytest.raises(ArchiveError, match=found) as caught, open_members(folder):
        pass
    assert str(caught.value).isprintable()


def test_links_and_pipes_in_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    link = tmp_path / "a" / "b" / "link"
    for target in ("/etc/passwd", str(tmp_path), "nowhere"):
        link.symlink_to(target)
        refused_folder(tmp_path / "a", "link: found a link")
        link.unlink()
    os.mkfifo(link)
    refused_folder(tmp_path / "a", "a special file")


def test_folders_beyond_every_archive_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "deep" / "/".join("x" * 20)
    deep.mkdir(parents=True)
    (deep / "file").write_text("")
    refused_folder(tmp_path / "deep", "folders inside each other")
    monkeypatch.setattr(subject, "MAX_MEMBERS", 3)
    (tmp_path / "wide").mkdir()
    for number in range(4):
        (tmp_path / "wide" / str(number)).write_text("")
    refused_folder(tmp_path / "wide", "more than 3")
    for number in range(4):
        (tmp_path / "both" / str(number)).mkdir(parents=True)
        (tmp_path / "both" / str(number) / "file").write_text("")
    monkeypatch.setattr(subject, "MAX_DEPTH", 2)
    refused_folder(tmp_path / "both", "more than 3")


def test_a_file_that_changes_between_opening_and_reading_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("content")
    with open_members(tmp_path) as members:
        for change in ("longer content", "short"):
            (tmp_path / "a").write_text(change)
            with pytest.raises(ArchiveError, match="a: found damaged content"):
                members.read("a")
        (tmp_path / "a").unlink()
        with pytest.raises(ArchiveError, match="no such file"):
            members.read("a")
        (tmp_path / "a").symlink_to("/etc/passwd")
        with pytest.raises(ArchiveError, match="damaged content"):
            members.read("a")
        (tmp_path / "a").unlink()
        os.mkfifo(tmp_path / "a")
        with pytest.raises(ArchiveError, match="changed"):
            members.read("a")


# ------------------------------------------------------------------------------------------------- random damage

INTACT = archive([entry("manifest.dill", b"manifest"), honest(bytes(range(256)) * 3), entry("c/d", b"")])


@settings(max_examples=500, deadline=None)
@given(st.integers(0, len(INTACT) - 1), st.binary(max_size=6), st.integers(0, 6))
def test_damage_is_an_error_or_touches_nothing_that_is_read(position: int, new: bytes, cut: int) -> None:
    data = INTACT[:position] + new + INTACT[position + cut :]
    contents = {b"manifest", bytes(range(256)) * 3, b""}
    try:
        with open_members_of(data, "here") as members:
            read = {members.read(name) for name in members.names}
    except ArchiveError as err:
        message = str(err)
    else:
        # Damage may hide members from the directory, or rename one in both places; it never changes content.
        message = ""
        assert read <= contents
    assert message.isprintable()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_an_error_or_an_empty_archive(data: bytes) -> None:
    for content in (data, data + b"PK\5\6" + bytes(18)):
        try:
            with open_members_of(content, "here") as members:
                assert members.names == ()
        except ArchiveError:
            pass

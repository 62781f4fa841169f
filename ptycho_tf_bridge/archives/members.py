"""Members of an untrusted archive: of a ZIP file, of a ZIP inside a ZIP, or of a folder.

Names and sizes are checked before anything is read, sizes and checksums while it is, and nothing is ever written to a
disk. Every error is an ``ArchiveError``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from ptycho_tf_bridge.errors import ArchiveError, refusal
from ptycho_torch.errors import breaking
from ptycho_torch.files.npz import listed
from ptycho_torch.files.zip_reader import ZipReader, ZipRefusedError

MAX_MEMBERS = 1024
MAX_DIRECTORY_BYTES = 2**20
MAX_MEMBER_BYTES = 2**30
MAX_TOTAL_BYTES = 2 * 2**30

MAX_READ_BYTES = 256 * 2**20
"""Largest member that is read, unless the reader says otherwise: N = 256 at n_filters_scale = 2 has 155 MB."""

MAX_RATIO = 50
RATIO_FROM_BYTES = 16 * 2**20
"""From this size on, a member may not unpack to more than ``MAX_RATIO`` times as much: weights hardly shrink."""

MAX_NAME_CHARACTERS = 512
MAX_DEPTH = 16

_PIECE_BYTES = 2**20
_DRIVE = re.compile(r"[A-Za-z]:")
_AN_ARCHIVE = "an archive of the reference: wts.h5.zip, a .keras file, or the folder of a SavedModel"


class Members:
    """Names, sizes and content of the members of one archive.

    Attributes:
        where: the archive, for messages.
        names: of all members, folders left out, in the order of the archive.
    """

    def __init__(
        self, where: str, sizes: Mapping[str, int], read: Callable[[str], bytes], digest: Callable[[], str]
    ) -> None:
        self.where = where
        self._sizes = dict(sizes)
        self.names = tuple(self._sizes)
        self._read = read
        self._digest = digest

    def __contains__(self, name: object) -> bool:
        return name in self._sizes

    def place(self, name: str) -> str:
        """Return archive and member, for messages."""
        return f"{self.where}: {name}"

    def size(self, name: str) -> int:
        """Return the unpacked length in bytes that the archive states.

        Raises:
            ArchiveError: there is no such member.
        """
        if name not in self._sizes:
            raise refusal(self.place(name), f"no such member; present: {listed(self.names)}", expected=_AN_ARCHIVE)
        return self._sizes[name]

    @breaking("FILE-01")
    def read(self, name: str, limit_bytes: int | None = None) -> bytes:
        """Read one member whole.

        Args:
            name: of the member.
            limit_bytes: largest length to read; None for ``MAX_READ_BYTES``.

        Raises:
            ArchiveError: it is missing, too large, truncated, or does not fit its length or checksum.
        """
        size, limit_bytes = self.size(name), MAX_READ_BYTES if limit_bytes is None else limit_bytes
        if size > limit_bytes:
            raise refusal(self.place(name), f"{size} bytes", expected=f"at most {limit_bytes}")
        with _damage(self.place(name)):
            return self._read(name)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the file, or of the sorted names and contents of a folder, in hexadecimal."""
        with _damage(self.where):
            return self._digest()


@contextlib.contextmanager
def open_members(path: Path) -> Iterator[Members]:
    """Open a ZIP file or a folder; a file stays open until the block ends, so that nobody can exchange it.

    Raises:
        ArchiveError: it is neither, is damaged or hostile, or grows beyond every archive of the reference.
    """
    if path.is_dir():
        yield _of_folder(path)
        return
    with contextlib.ExitStack() as stack:
        with _damage(str(path)):
            if not stat.S_ISREG(path.stat().st_mode):
                raise refusal(str(path), "something that is neither file nor folder", expected=_AN_ARCHIVE)
            file = stack.enter_context(path.open("rb", buffering=0))
        yield _of_zip(file, str(path))


@contextlib.contextmanager
def open_members_of(data: bytes, where: str) -> Iterator[Members]:
    """Open a ZIP archive that lies in memory, for example a ``.keras`` file inside an archive.

    Args:
        data: the archive.
        where: it came from, for messages.

    Raises:
        ArchiveError: as ``open_members``.
    """
    yield _of_zip(io.BytesIO(data), where)


@breaking("FILE-01")
def _of_zip(file: BinaryIO, where: str) -> Members:
    def opened() -> contextlib.AbstractContextManager[BinaryIO]:
        file.seek(0)
        return contextlib.nullcontext(file)

    with _damage(where):
        reader = ZipReader(opened, max_members=MAX_MEMBERS, max_directory_bytes=MAX_DIRECTORY_BYTES)
        if reader.start:
            # An archive that was cut behind its .keras file ends with the directory of that one.
            raise ZipRefusedError(f"{reader.start} bytes before the archive; perhaps it is cut off and this is a part")
        reader.check_headers()
    entries: dict[str, zipfile.ZipInfo] = {}
    for member in reader.members:
        name = _checked_name(where, member.orig_filename)
        _check_entry(f"{where}: {name}", member)
        if name in entries:
            raise refusal(f"{where}: {name}", "the same name twice", expected="each member once")
        entries[name] = member
    files = {name: member for name, member in entries.items() if not member.is_dir()}
    for name in files:
        for folder in _folders_of(name):
            if folder in files:
                raise refusal(f"{where}: {name}", f"{folder} as file and as folder", expected="one of them")
    sizes = {name: member.file_size for name, member in files.items()}
    _check_sizes(where, sizes)

    def read(name: str) -> bytes:
        content = bytearray(sizes[name])
        with reader.content(files[name]) as fill:
            fill(memoryview(content))
        return bytes(content)

    def digest() -> str:
        with opened() as source:
            return hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]

    return Members(where, sizes, read, digest)


def _check_entry(place: str, member: zipfile.ZipInfo) -> None:
    """Refuse what the directory says of one member where no archive of ours would say it."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG):
        found = "a link" if kind == stat.S_IFLNK else f"a special file (mode {kind:o})"
        raise refusal(place, found, expected="only files and folders")
    if member.is_dir() and member.file_size:
        raise refusal(place, f"a folder of {member.file_size} bytes", expected="folders without content")
    if member.file_size > max(RATIO_FROM_BYTES, MAX_RATIO * member.compress_size):
        found = f"{member.compress_size} bytes that unpack to {member.file_size}"
        raise refusal(place, found, expected=f"at most {MAX_RATIO} times as many")


@breaking("FILE-01")
def _of_folder(path: Path) -> Members:
    where = str(path)
    sizes: dict[str, int] = {}
    with _damage(where):
        for name, entry in _walk(path, where, ""):
            _checked_name(where, name)
            if len(sizes) >= MAX_MEMBERS:
                raise refusal(where, f"more than {MAX_MEMBERS} files", expected=_AN_ARCHIVE)
            sizes[name] = entry.stat(follow_symlinks=False).st_size
    _check_sizes(where, sizes)

    def pieces(name: str) -> Iterator[bytes]:
        # A pipe or a link that has taken the file's place since is not waited for and not followed.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path / name, flags), "rb", buffering=0) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode) or state.st_size != sizes[name]:
                raise OSError("it changed while it was read")
            left = sizes[name]
            while left:
                piece = file.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise EOFError(f"{sizes[name] - left} bytes of {sizes[name]} are there")
                left -= len(piece)
                yield piece

    def digest() -> str:
        sha256 = hashlib.sha256()
        for name in sorted(sizes):
            # Lengths in between, so that no two folders give the same bytes.
            encoded = name.encode("utf-8", "surrogateescape")
            sha256.update(b"%d:%b%d:" % (len(encoded), encoded, sizes[name]))
            for piece in pieces(name):
                sha256.update(piece)
        return sha256.hexdigest()

    return Members(where, sizes, lambda name: b"".join(pieces(name)), digest)


def _walk(folder: Path, where: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file below a folder with its name in the archive, sorted."""
    if prefix.count("/") > MAX_DEPTH:
        raise refusal(f"{where}: {prefix}", f"more than {MAX_DEPTH} folders inside each other", expected=_AN_ARCHIVE)
    with os.scandir(folder) as entries:
        # One more than allowed: a folder of millions is not listed to its end.
        few = sorted(
            (entry for _, entry in zip(range(MAX_MEMBERS + 1), entries, strict=False)), key=lambda entry: entry.name
        )
    if len(few) > MAX_MEMBERS:
        raise refusal(f"{where}: {prefix}", f"more than {MAX_MEMBERS} entries", expected=_AN_ARCHIVE)
    for entry in few:
        name = prefix + entry.name
        if entry.is_symlink():
            raise refusal(f"{where}: {name}", "a link", expected="only files and folders")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), where, f"{name}/")
        elif entry.is_file(follow_symlinks=False):
            yield name, entry
        else:
            raise refusal(f"{where}: {name}", "a special file", expected="only files and folders")


def _checked_name(where: str, name: str) -> str:
    """Return the name of a member without a folder's slash, if it stays inside the archive."""
    parts = name.removesuffix("/").split("/")
    if len(name) > MAX_NAME_CHARACTERS or len(parts) > MAX_DEPTH:
        raise refusal(f"{where}: {name}", f"a name of {len(name)} characters", expected=_AN_ARCHIVE)
    if "\\" in name or _DRIVE.match(name) or not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise refusal(
            f"{where}: {name}",
            "a name that leads elsewhere or cannot be printed",
            expected="relative names with / between folders",
            remedy="Do not unpack this archive: its names are made to write outside the folder it is unpacked in.",
        )
    return "/".join(parts)


def _folders_of(name: str) -> Sequence[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _check_sizes(where: str, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if size > MAX_MEMBER_BYTES:
            raise refusal(f"{where}: {name}", f"{size} bytes", expected=f"at most {MAX_MEMBER_BYTES}")
    if sum(sizes.values()) > MAX_TOTAL_BYTES:
        raise refusal(where, f"{sum(sizes.values())} bytes unpacked", expected=f"at most {MAX_TOTAL_BYTES}")


@contextlib.contextmanager
def _damage(place: str) -> Iterator[None]:
    """Turn whatever the parsers and the disk raise into one error that names the place and gives the reason."""
    try:
        yield
    except ArchiveError:
        raise
    except ZipRefusedError as err:
        raise refusal(f"{place}: {err.name}" if err.name else place, err.found, expected=_AN_ARCHIVE) from err
    except (FileNotFoundError, NotADirectoryError, PermissionError) as err:
        found = "a file that may not be read" if isinstance(err, PermissionError) else "no such file"
        raise refusal(place, found, expected=_AN_ARCHIVE, remedy="Check the path and who may read it.") from err
    except Exception as err:
        reason = str(err).strip().partition("\n")[0] or type(err).__name__
        raise refusal(place, f"damaged content ({reason})", expected=_AN_ARCHIVE) from err

"""JSON files: written whole or not at all, and read as untrusted files are: bounded, and checked against a schema."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from conformance.errors import DocumentError
from conformance.spec.loader import check_schema
from ptycho_torch.contracts.contract import SpecError
from ptycho_torch.errors import breaking
from ptycho_torch.files.npz_writer import replacing


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it: None for infinity and NaN."""
    return value if math.isfinite(value) else None


def as_text(content: Any) -> str:
    """Return JSON that is the same for the same content: keys in order, numbers as Python prints them, no NaN."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> Path:
    """Write JSON, the same bytes for the same content, in one rename; return the path."""
    return write_text(path, as_text(content))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content with the SHA-256 of all of it that is not the key ``digest`` itself.

    It shows damage and careless edits. It is no secret signature: whoever can write the file can write another digest.
    """
    rest = {name: value for name, value in content.items() if name != "digest"}
    return rest | {"digest": hashlib.sha256(as_text(rest).encode()).hexdigest()}


def write_text(path: Path, text: str) -> Path:
    """Write a text file in one rename, and return its path; its folder is made, and a file that is there replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, overwrite=True) as file:
        file.write(text.encode())
    return path


@breaking("FILE-08")
def read_json(path: Path, schema: str, *, largest_bytes: int) -> dict[str, Any]:
    """Read one JSON file and hold it against a schema of the specs folder.

    Args:
        path: the file.
        schema: ``NAME.json`` is judged by ``specs/schema/NAME.schema.json``.
        largest_bytes: a longer file is refused before it is read.

    Raises:
        DocumentError: the file cannot be read, is too large, no JSON, does not follow the schema, or was changed after
            it was sealed.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(largest_bytes + 1)
    except OSError as err:
        raise DocumentError(
            f"{path}: found a file that cannot be read ({err.strerror or err}); check the path."
        ) from err
    if len(raw) > largest_bytes:
        raise DocumentError(
            f"{path}: found more than {largest_bytes:,} bytes; expected a {_kind(schema)} file, which is smaller."
        )
    try:
        content = json.loads(
            raw.decode(), parse_constant=_refuse, parse_float=_finite, parse_int=_short, object_pairs_hook=_unique
        )
        # Half of a surrogate pair can be escaped in JSON, but neither printed nor written.
        json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as err:
        raise DocumentError(
            f"{path}: found text that is no JSON ({err}); expected a complete {_kind(schema)} file: write it again."
        ) from err
    try:
        check_schema(content, schema)
    except SpecError as err:
        # The words of the schema come last: they may quote what a stranger wrote.
        detail = str(err).removeprefix(f"{schema}: ")[:_LONGEST_DETAIL]
        raise DocumentError(f"{path}: is no {_kind(schema)} file: {detail}") from err
    assert isinstance(content, dict)
    if "digest" in content and content["digest"] != sealed(content)["digest"]:
        raise DocumentError(
            f"{path}: was changed after it was written: its content does not have the digest that it names; "
            f"make the {_kind(schema)} again."
        )
    return content


_LONGEST_DETAIL = 400
_LONGEST_INTEGER = 30


def _kind(schema: str) -> str:
    return Path(schema).stem.replace("_", " ")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not finite")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits[:20])


def _short(digits: str) -> int:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else _refuse(f"{digits[:20]}…")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} is there twice")
    return content

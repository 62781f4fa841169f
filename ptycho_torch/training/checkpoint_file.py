"""The file of a checkpoint: tensors as safetensors, everything else as JSON in its header.

Nothing is unpickled to read it, whoever made it. A checkpoint of Lightning is a tree of dictionaries, lists, numbers,
text and tensors; here the tree is JSON in which ``{"$tensor": NAME}`` stands for a tensor, and every tensor lies under
its name in a safetensors file, which other programs read as well.

The layout: <doc-ref type="guide">docs/file_formats.md</doc-ref>.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptycho_torch.errors import CheckpointError, breaking
from ptycho_torch.files.npz_writer import replacing

if TYPE_CHECKING:
    from torch import Tensor

KEY = "ptycho_torch"
"""Under which a checkpoint keeps what is ours, and under which the header of the file has the tree."""

_MAX_HEADER_BYTES = 100_000_000
"""What safetensors itself allows."""

_MAX_DEPTH = 64
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def write_content(path: str | Path, content: Mapping[str, Any], *, overwrite: bool = True) -> None:
    """Write a checkpoint as a whole or not at all: staged in its folder, flushed to the disk, renamed.

    Args:
        path: the file; its folder is made if it is not there.
        content: a tree of dictionaries, lists, tuples, numbers, text, arrays and tensors.
        overwrite: whether a file may be there.

    Raises:
        CheckpointError: a value of another type.
        ConfigError: a file is there and may not be overwritten, or its folder cannot be made.
        PtychoError: no space is left on the disk.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_plain(content, "", tensors), allow_nan=False, separators=(",", ":"))
    packed = save(tensors, {KEY: tree})
    if "://" in str(path):
        import fsspec

        with fsspec.open(str(path), "wb") as file:
            file.write(packed)
        return
    with replacing(Path(path), overwrite=overwrite) as file:
        file.write(packed)


@breaking("FILE-06")
def read_content(path: str | Path) -> dict[str, Any]:
    """Return the tree that ``write_content`` was given, with tensors on the CPU.

    Raises:
        CheckpointError: the file is damaged, of another program, or a pickle of PyTorch.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if "://" in str(path):
            import fsspec

            with fsspec.open(str(path), "rb") as file:
                packed = file.read()
        else:
            packed = Path(path).read_bytes()
    except OSError as err:
        raise CheckpointError(f"{path}: cannot be read ({err.strerror or err}).") from err
    tree = _tree_of(path, packed[:8], lambda length: packed[8 : 8 + length], len(packed))
    try:
        tensors = load(packed)
        content = _filled(tree, tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as err:
        raise CheckpointError(f"{path}: damaged ({type(err).__name__}: {' '.join(str(err).split())[:200]}).") from err
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no checkpoint, but a {type(content).__name__}.")
    return content


def read_tree(path: Path) -> dict[str, Any]:
    """Return the JSON tree of a checkpoint, in which tensors are names. Needs no PyTorch.

    Raises:
        CheckpointError: as ``read_content``, as far as the header tells.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return _tree_of(path, file.read(8), file.read, path.stat().st_size)


def run_of(path: Path) -> str | None:
    """Return the id of the run that a checkpoint is of; None where it has none, or cannot be read. Needs no PyTorch."""
    try:
        own = read_tree(path).get(KEY)
    except (CheckpointError, OSError):
        return None
    run = own.get("run") if isinstance(own, dict) else None
    return run if isinstance(run, str) else None


def remove(path: str | Path) -> None:
    """Remove a checkpoint, if it is there."""
    if "://" in str(path):
        import fsspec

        system, place = fsspec.core.url_to_fs(str(path))
        if system.exists(place):
            system.rm(place, recursive=True)
    elif Path(path).is_dir():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def _tree_of(path: str | Path, start: bytes, rest: Callable[[int], bytes], size: int) -> dict[str, Any]:
    """Return the JSON tree of a file, from the eight bytes that it begins with and a way to read on behind them."""
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    fits = 2 <= length <= min(_MAX_HEADER_BYTES, size - 8)
    if start[:4] == b"PK\x03\x04" or (start[:2] == b"\x80\x02" and not fits):
        raise CheckpointError(
            f"{path}: an older checkpoint, or one of another program, which is a pickle and is not read. If an older "
            f"ptycho-torch wrote it for you, `ptycho-torch convert-checkpoint {shlex.quote(str(path))} -o NEW.ckpt "
            "--trust` makes one of today of it; networks of other programs are others: train one with `ptycho-torch "
            "train`."
        )
    if not fits:
        raise CheckpointError(
            f"{path}: no checkpoint, or a truncated one. Give a .ckpt file that `ptycho-torch train` has written, or "
            "copy it again."
        )
    try:
        header = json.loads(rest(length))
        tree = json.loads(header["__metadata__"][KEY])
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise CheckpointError(
            f"{path}: the header of this file has no {KEY!r} ({type(err).__name__}), so it is of another program, or "
            "damaged. Give a .ckpt file that `ptycho-torch train` has written."
        ) from err
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: {KEY!r} in its header is no table.")
    return tree


def _plain(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON has it; tensors go into ``tensors``, under the place that they have in the tree."""
    import torch

    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return _plain(value.item(), place, tensors)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, np.ndarray):
        return {"$array": _put(torch.from_numpy(np.ascontiguousarray(value)), place, tensors)}
    if isinstance(value, torch.Tensor):
        if value.is_complex():
            return {"$complex": _put(torch.view_as_real(value.detach().resolve_conj()), place, tensors)}
        # The order of the axes in memory decides how fast an optimiser is with its state.
        last = value.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
        return {"$channels_last" if last else "$tensor": _put(value, place, tensors)}
    if isinstance(value, Mapping):
        inner = [(key, _plain(each, f"{place}/{key}" if place else str(key), tensors)) for key, each in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in inner):
            return dict(inner)
        return {"$items": [[_plain(key, place, tensors), each] for key, each in inner]}
    if isinstance(value, tuple | list):
        values = [_plain(each, f"{place}/{number}", tensors) for number, each in enumerate(value)]
        return {"$tuple": values} if isinstance(value, tuple) else values
    raise CheckpointError(
        f"A checkpoint holds tensors, arrays, numbers, text, lists and dictionaries; {place!r} is a "
        f"{type(value).__name__}. Let the callback or module that puts it there save plain values."
    )


def _put(tensor: Tensor, place: str, tensors: dict[str, Tensor]) -> str:
    import torch

    name = place
    while name in tensors or name == "__metadata__":
        name += "'"
    # A copy: two tensors of one file may share no memory.
    tensors[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return name


def _filled(value: Any, tensors: Mapping[str, Tensor], depth: int = 0) -> Any:
    """Return what ``_plain`` was given."""
    import torch

    if depth > _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_DEPTH} levels")
    if isinstance(value, list):
        return [_filled(each, tensors, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, what),) = value.items()
        match kind:
            case "$tensor":
                return tensors[what]
            case "$channels_last":
                return tensors[what].to(memory_format=torch.channels_last)
            case "$complex":
                return torch.view_as_complex(tensors[what])
            case "$array":
                return tensors[what].numpy()
            case "$float":
                return _NOT_FINITE[what]
            case "$tuple":
                return tuple(_filled(each, tensors, depth + 1) for each in what)
            case "$items":
                return {_filled(key, tensors, depth + 1): _filled(each, tensors, depth + 1) for key, each in what}
    return {key: _filled(each, tensors, depth + 1) for key, each in value.items()}

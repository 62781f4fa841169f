"""Numbers as JSON files, which have no NaN and no infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptycho_torch.files.npz_writer import replacing


def finite_or_none(value: Any) -> Any:
    """Return a value with None in place of every number in it that is not finite; tuples become lists.

    >>> finite_or_none({"a": (1.5, math.nan), "b": math.inf})
    {'a': [1.5, None], 'b': None}
    """
    if isinstance(value, Mapping):
        return {key: finite_or_none(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_numbers(path: Path, numbers: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write numbers as a JSON file, in one rename.

    Raises:
        ConfigError: the file is there and may not be overwritten, or the folder is not there.
    """
    with replacing(path, overwrite=overwrite) as file:
        file.write((json.dumps(finite_or_none(numbers), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())

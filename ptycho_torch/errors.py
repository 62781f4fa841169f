"""The errors that a user of ptycho_torch can meet.

Each message names what was found, what was expected and what to do about it.

<doc-ref type="guide">docs/DEVELOPER_GUIDE.md</doc-ref>
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_LINE_CHARACTERS = 200


class PtychoError(Exception):
    """Root of every error this project raises on purpose.

    Attributes:
        clause: id in ``specs/data_contracts.yaml`` of what a file breaks, for example ``FILE-02``; None where no clause
            speaks of it.
    """

    clause: str | None = None


class ConfigError(PtychoError, ValueError):
    """A setting, or a combination of settings, that the network cannot have."""


class DataContractError(PtychoError, ValueError):
    """Data that breaks a clause of the data contract.

    Attributes:
        path: the file, or None where the data came from memory.
        key: the member of the file, or None where the file as a whole is meant.
        clause: id in ``specs/data_contracts.yaml``, for example ``SCAN-06``; None for tensors of the network.
        found: what is there.
        expected: what the clause asks for.
        remedy: what to do.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | None = None,
        key: str | None = None,
        clause: str | None = None,
        found: str = "",
        expected: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(message)
        self.path = path
        self.key = key
        self.clause = clause
        self.found = found
        self.expected = expected
        self.remedy = remedy


class IncompleteFileError(DataContractError):
    """A file that leaves several things open, which options of the command can say.

    Attributes:
        options: those options, as one types them; words in capitals are for the user to replace.
    """

    options: str = ""


class MapError(PtychoError, OSError):
    """A memory map that cannot be built or read: no space, no right to write, damaged folders."""


class CheckpointError(PtychoError, ValueError):
    """A checkpoint that cannot be read, or does not belong to this data or these settings."""


class TrainingError(PtychoError, RuntimeError):
    """Training that cannot go on: the loss is not finite any more."""


def one_line(text: str, characters: int = _LINE_CHARACTERS) -> str:
    """Make foreign text fit for a message: no line breaks or control characters, and not too long."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: 2 * characters])
    line = " ".join(line.split())
    return line if len(line) <= characters else f"{line[:characters]} …"


@contextlib.contextmanager
def breaking(clause: str) -> Iterator[None]:
    """Name the clause of a block, or of a function that this decorates, in each of our errors that names none yet.

    A file that the system cannot read breaks no clause.

    >>> with breaking("FILE-02"):
    ...     raise PtychoError("params.dill: found code; ask where it came from.")
    Traceback (most recent call last):
    ptycho_torch.errors.PtychoError: params.dill: found code; ask where it came from. (clause FILE-02)
    """
    try:
        yield
    except PtychoError as err:
        if err.clause is None and not isinstance(err.__cause__, OSError):
            err.clause = clause
            err.args = (f"{err} (clause {clause})",)
        raise

"""The errors of the bridge between TensorFlow and PyTorch."""

from __future__ import annotations

from ptycho_torch.errors import PtychoError, one_line

_PLACE_CHARACTERS = 600
_MESSAGE_CHARACTERS = 2000


class BackendMissingError(PtychoError, ImportError):
    """TensorFlow is not installed, or the one that is cannot serve as the reference."""


class LayoutError(PtychoError, ValueError):
    """An array whose axes are not those of the named layout."""


class WeightMapError(PtychoError, ValueError):
    """A weight that is unknown, missing or misshapen; the message names it."""


class ArchiveError(PtychoError, ValueError):
    """An archive that is damaged, hostile, or of a kind that cannot be converted; the message says which and why.

    Whatever a message repeats of an archive, it stays one line of bounded length.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, _MESSAGE_CHARACTERS))


def refusal(
    where: str, found: str, *, expected: str, remedy: str = "Get the archive again from where it was saved."
) -> ArchiveError:
    """Return the error for content that is not read, as one line whatever the content says.

    Args:
        where: file and member.
        found: what is there.
        expected: what should be.
        remedy: what to do.

    >>> str(refusal("wts.h5.zip", "3 bytes", expected="a ZIP archive", remedy="Look for another file."))
    'wts.h5.zip: found 3 bytes; expected a ZIP archive. Look for another file.'
    """
    place = one_line(where, _PLACE_CHARACTERS)
    return ArchiveError(f"{place}: found {one_line(found)}; expected {one_line(expected)}. {remedy}")


class LiveReferenceError(PtychoError, RuntimeError):
    """An installed reference package that cannot be driven; the message names what is missing."""

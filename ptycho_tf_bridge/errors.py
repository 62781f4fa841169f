"""The errors of the bridge between TensorFlow and PyTorch."""

from ptycho_torch.errors import PtychoError


class BackendMissingError(PtychoError, ImportError):
    """TensorFlow is not installed, or the one that is cannot serve as the reference."""


class LayoutError(PtychoError, ValueError):
    """An array whose axes are not those of the named layout."""


class WeightMapError(PtychoError, ValueError):
    """A weight that is unknown, missing or misshapen; the message names it."""


class ArchiveError(PtychoError, ValueError):
    """An archive that is damaged, hostile, or of a kind that cannot be converted; the message says which and why."""

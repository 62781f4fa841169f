"""The errors of the conformance suite."""

from ptycho_torch.errors import PtychoError


class BundleError(PtychoError, ValueError):
    """A recording that does not follow the bundle format."""


class ScanError(PtychoError, ValueError):
    """A scan that cannot be turned into network input."""


class DocumentError(PtychoError, ValueError):
    """A report, a piece of evidence or a sign-off that cannot be read or does not follow its schema."""


class PredictionsError(PtychoError, ValueError):
    """A file of recorded predictions that does not follow its format, or belongs to another archive or scan."""


class DriftError(PtychoError, ValueError):
    """A module that is not the configuration of an installed reference."""


class RecordError(PtychoError, ValueError):
    """A reference or a case of which no recording can be made."""


class CandidateError(PtychoError, ValueError):
    """A candidate that cannot be made, or gives what the judge cannot read."""


class StudyError(PtychoError):
    """A study cannot be run or continued."""

"""The errors that a user of ptycho_torch can meet.

Each message names what was found, what was expected and what to do about it.
"""


class PtychoError(Exception):
    """Root of every error this project raises on purpose."""


class ConfigError(PtychoError, ValueError):
    """A setting, or a combination of settings, that the network cannot have."""


class DataContractError(PtychoError, ValueError):
    """Data that breaks a clause of the data contract."""

"""Pickled parameters of archives, read as plain values without unpickling: ``restricted_pickle`` with our errors."""

from __future__ import annotations

from typing import Any

from ptycho_tf_bridge.errors import refusal
from ptycho_torch.errors import breaking
from ptycho_torch.files.restricted_pickle import PLAIN, RefusedPickleError, read_plain


@breaking("FILE-02")
def read_pickle(data: bytes, *, where: str) -> Any:
    """Return what a pickle holds: plain values, arrays, and paths as text.

    Args:
        data: the pickle.
        where: it came from, for messages.

    Raises:
        ArchiveError: it is damaged, or it asks for anything but the constructors of arrays, scalars and paths.

    >>> import pickle
    >>> read_pickle(pickle.dumps({"N": 64, "gridsize": 2}), where="params.dill")
    {'N': 64, 'gridsize': 2}
    """
    try:
        return read_plain(data)
    except RefusedPickleError as err:
        if err.suspicious:
            remedy = "It may be made to run code; ask where the archive came from."
            raise refusal(where, err.found, expected=PLAIN, remedy=remedy) from err
        raise refusal(where, err.found, expected=PLAIN) from err

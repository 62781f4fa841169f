"""``python -m conformance signed``: was this installation signed off for release, and is it what was signed off?

<doc-ref type="guide">docs/conformance.md</doc-ref>
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``signed``."""
    parser.add_argument(
        "sign_off",
        nargs="?",
        type=Path,
        metavar="SIGN_OFF",
        help="a signed-off decision (default: the one in the installed package)",
    )


def run(options: argparse.Namespace) -> int:
    """Print who signed off what; return 0.

    Raises:
        DocumentError: there is no decision, it grants no release, or it is of other sources.
    """
    from conformance.release.sign_off import PACKAGED, signed_for_release

    found = signed_for_release(options.sign_off or PACKAGED)
    print(f"signed off for release on {found['decided_utc']} by {found['decided_by']}")  # noqa: T201
    for each in found["inputs"]:
        print(f"  {each['file']} ({', '.join(each['devices'])}): {each['headline']}")  # noqa: T201
    return 0

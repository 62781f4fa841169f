"""``python -m conformance document``: what is written for people from what machines read."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: ``python -m conformance document`` takes no arguments."""


def run(options: argparse.Namespace) -> int:
    """Write both documents and return 0.

    Raises:
        PtychoError: a file of the specs folder or of the evidence is wrong, or a document has lost its marks.
    """
    from conformance.provenance.evidence import committed_evidence
    from conformance.provenance.json_files import write_text
    from conformance.release.document import FILE, NUMBERS_FILE, document, numbers, with_numbers
    from conformance.release.policy import RELEASE, read_policy
    from ptycho_torch.contracts.contract import load_contract, specs_dir

    print(f"wrote {write_text(specs_dir() / FILE, document(load_contract()))}")  # noqa: T201 - what the command is for
    # Only a checkout has documents for people.
    path = specs_dir().parent / NUMBERS_FILE
    if path.is_file():
        written = numbers(committed_evidence(), read_policy(RELEASE))
        print(f"wrote {write_text(path, with_numbers(path.read_text(encoding='utf-8'), written))}")  # noqa: T201
    return 0

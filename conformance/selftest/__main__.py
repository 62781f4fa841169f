"""``python -m conformance.selftest``: minutes of mistakes and rewrites; status 1 where a goal is missed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from conformance.provenance.evidence import write_evidence
from conformance.selftest.run import MEANINGS, evidence, run


def main(arguments: list[str]) -> int:
    """Run everything; print each finding, then the numbers."""
    parser = argparse.ArgumentParser(prog="python -m conformance.selftest", description=__doc__)
    parser.add_argument("--evidence", metavar="FOLDER", type=Path, help="keep the numbers there, as evidence")
    options = parser.parse_args(arguments)
    numbers, wrong = run(lambda line: print(line, flush=True))  # noqa: T201 - what the command is for
    for line in wrong:
        print(f"NOT AS IT SHOULD BE  {line}")  # noqa: T201
    found = evidence(numbers, wrong, "python -m conformance.selftest")
    for name, value in numbers.items():
        goal = f" (goal {found.goals[name]})" if name in found.goals else ""
        print(f"{value:g}  {MEANINGS[name]}{goal}")  # noqa: T201
    if options.evidence:
        print(f"wrote {write_evidence(options.evidence, found)}")  # noqa: T201
    return 1 if found.missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

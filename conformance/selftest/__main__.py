"""``python -m conformance.selftest``: minutes of mistakes and rewrites; status 1 where a goal is missed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from conformance.provenance.evidence import write_evidence
from conformance.selftest.network import NETWORK
from conformance.selftest.run import MEANINGS, evidence, reproduced, run
from ptycho_torch.errors import PtychoError


def main(arguments: list[str]) -> int:
    """Run everything; print each finding, then the numbers."""
    parser = argparse.ArgumentParser(prog="python -m conformance.selftest", description=__doc__)
    parser.add_argument("--evidence", metavar="FOLDER", type=Path, help="keep the numbers there, as evidence")
    parser.add_argument(
        "--reproduce", metavar="N", type=int, help="instead, show N mistakes in the network as programs of their own"
    )
    options = parser.parse_args(arguments)
    if options.reproduce:
        return _reproduce(options.reproduce)
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


def _reproduce(count: int) -> int:
    """Make a program of every so many mistakes in the network; return 1 where one cannot be shown."""
    chosen = NETWORK[:: max(1, len(NETWORK) // count)][:count]
    failed = 0
    for fault in chosen:
        try:
            said = f"{len(reproduced(fault).splitlines())} lines"
        except PtychoError as err:
            failed, said = failed + 1, f"NOT SHOWN  {err}"
        print(f"{fault.name} at {fault.where}: {said}", flush=True)  # noqa: T201
    print(f"{len(chosen) - failed} of {len(chosen)} mistakes are shown by a program of their own")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

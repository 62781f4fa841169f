"""``python -m tests.fuzz``: fuzz every reader of files from anywhere, one process each.

    python -m tests.fuzz --minutes 5 -o fuzz.json

With atheris, what is tried next follows from the lines that were reached; without it, files are damaged at random.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

INSTRUMENTED = ["ptycho_torch", "ptycho_tf_bridge", "zipfile", "yaml"]


def main() -> int:
    """Return 1 where a reader crashed or hung."""
    fuzzing, engine = imported()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("harnesses", nargs="*", help=f"readers, of {', '.join(fuzzing.HARNESSES)} (default: all)")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all of them together (default: %(default)s)")
    parser.add_argument("-o", dest="result", type=Path, metavar="FILE", help="JSON to write")
    options = parser.parse_args()
    names = options.harnesses or list(fuzzing.HARNESSES)
    results: dict[str, Any] = {}
    for name in names:
        results[name] = found = apart(fuzzing, engine, name, 60 * options.minutes / len(names))
        print(
            f"{name:14} {found['executions']:9,} executions, {found['refused']:9,} refused, "
            f"{len(found['crashes'])} crashes, {len(found['hangs'])} hangs, slowest {found['slowest_s']:.2f} s, "
            f"{found['peak_bytes'] / 2**20:.0f} MiB, {found['cpu_s']:.0f} CPU-s",
            flush=True,
        )
        for key in [*found["crashes"], *(f"{seconds} s" for seconds in found["hangs"])]:
            print(f"    {key}", flush=True)
    if options.result:
        options.result.write_text(json.dumps({"engine": engine, "harnesses": results}, indent=1) + "\n")
    return int(any(found["crashes"] or found["hangs"] for found in results.values()))


def imported() -> tuple[ModuleType, str]:
    """Import the harnesses, so that atheris sees the lines of the readers; return them and what damages the files."""
    try:
        import atheris
    except ImportError:
        from tests.fuzz import fuzzing

        return fuzzing, "random damage"
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from tests.fuzz import fuzzing
    return fuzzing, "atheris"


def apart(fuzzing: ModuleType, engine: str, name: str, seconds: float) -> dict[str, Any]:
    """Run one harness in a process of its own, which atheris ends, and a reader may."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "tally.json")
        child = os.fork()
        if not child:
            forked = fuzzing.forked_hdf5() if "hdf5" in name else contextlib.nullcontext()
            with forked:
                one = fuzzing.Fuzzing(name, Path(folder))
                act = one.guided if engine == "atheris" else one.at_random
                act(fuzzing.seeds(name), seconds, result=result)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found: dict[str, Any] = json.loads(result.read_text())
    if code:
        found["crashes"][f"the process ended with {code}"] = ""
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Commands beside ``pytest conformance``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from conformance import command_gate, command_record, command_study
from ptycho_torch.errors import PtychoError

_HEADER = """\
# What was measured: written by `python -m conformance calibrate`, which keeps the limits. README.md explains the
# fields, and gives the reason of every limit; a limit may grow only with its reason.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m conformance",
        description="Commands beside `pytest conformance`.",
        epilog="example: python -m conformance calibrate -o specs/measured.yaml",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True)
    calibrate = commands.add_parser(
        "calibrate",
        help="measure what float32 costs the TensorFlow reference, stage by stage (minutes; needs TensorFlow)",
        epilog="example: python -m conformance calibrate -o specs/measured.yaml --bundle RECORDING.npz",
    )
    calibrate.add_argument("-o", "--output", type=Path, required=True, help="YAML file to write")
    calibrate.add_argument(
        "--bundle", type=Path, action="append", default=[], help="also calibrate on the case of a recording"
    )
    calibrate.add_argument(
        "--seeds",
        type=int,
        default=2,
        help="draws per graph, twice as many at N = 128 and four times at 256 (default 2)",
    )
    training = commands.add_parser(
        "calibrate-training",
        help="record how far float32 takes Keras from the truth in ten updates (minutes; needs TensorFlow)",
        epilog="example: python -m conformance calibrate-training",
    )
    training.add_argument("-o", "--output", type=Path, help="JSON file to write (default: the one of the package)")
    training.add_argument("--runs", type=int, default=16, help="trainings of Keras, each moved by an ulp (default 16)")
    commands.add_parser(
        "document",
        help="write specs/data_contracts.md from its YAML, and the numbers of docs/conformance.md from evidence",
        epilog="example: python -m conformance document",
    )
    clauses = commands.add_parser(
        "clauses",
        help="list every clause of the specification with the tests that judge it; fails where one has none",
        epilog="example: python -m conformance clauses FORWARD-FORCED",
    )
    clauses.add_argument("ids", nargs="*", metavar="CLAUSE", help="show these alone, with their text and every test")
    clauses.add_argument("--json", action="store_true", help="write JSON, for programs")
    verify = commands.add_parser(
        "verify",
        help="hold a converted model against its archive and what the reference recorded (minutes); fails where it "
        "is not the same",
        epilog="example: python -m conformance verify wts.h5.zip --scan scan.npz -o certificate",
    )
    verify.add_argument("archive", type=Path, metavar="ARCHIVE", help="archive of the TensorFlow reference")
    verify.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="certificate.json and certificate.html go here"
    )
    verify.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="what `ptycho-bridge convert` made of the archive: its folder or a .ckpt file; needed where the archive "
        "lacks something (default: the archive is converted here)",
    )
    verify.add_argument("--scan", type=Path, metavar="FILE", help="scan that the inputs are taken from")
    verify.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="what the reference predicted with this model (.npz, specs/README.md); with --scan, which then is the "
        "predicted scan, the whole object is compared too",
    )
    verify.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the converted model runs (default cpu)"
    )
    command_gate.add_arguments(commands)
    recording = commands.add_parser("record", help=command_record.WHAT, epilog=f"example: {command_record.EXAMPLE}")
    command_record.add_arguments(recording)
    command_study.add_arguments(commands)
    return parser


def _clauses(ids: Sequence[str], as_json: bool) -> int:
    from conformance import clauses
    from conformance.errors import DocumentError

    known, tests = clauses.catalogue(), clauses.collect()
    for clause in ids:
        if clause not in known:
            raise DocumentError(f"no clause {clause!r}; `python -m conformance clauses` lists them all.")
    shown = {clause: known[clause] for clause in ids or known}
    if as_json:
        print(json.dumps(clauses.as_json(shown, tests), indent=1, ensure_ascii=False))  # noqa: T201
    else:
        print(*clauses.listing(shown, tests, whole=bool(ids)), sep="\n")  # noqa: T201
    found = list(clauses.complaints(known, tests))
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)  # noqa: T201
    return 1 if found else 0


def _verify(options: argparse.Namespace) -> int:
    import tempfile

    from conformance.certificate import write_certificate
    from conformance.verify import verify
    from ptycho_tf_bridge.archive import read_archive
    from ptycho_tf_bridge.errors import ArchiveError
    from ptycho_tf_bridge.migrate import convert
    from ptycho_torch.command_infer import checkpoint_of
    from ptycho_torch.train import accelerator

    accelerator(options.device)
    archive = read_archive(options.archive)
    if archive.missing and options.checkpoint is None:
        raise ArchiveError(
            f"{archive.path}: the archive does not hold {', '.join(archive.missing)}. Give that to "
            "`ptycho-bridge convert`, and its folder here with --checkpoint."
        )
    with tempfile.TemporaryDirectory(prefix="ptycho-verify-") as folder:
        if options.checkpoint is None:
            checkpoint = convert(archive, Path(folder)).checkpoint
        else:
            checkpoint = checkpoint_of(options.checkpoint)
        found = verify(
            archive,
            checkpoint,
            scan=options.scan,
            predictions=options.predictions,
            device=options.device,
            tell=lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201 - a command shows its progress
        )
        written = write_certificate(options.output, found)
    print(found.sentence)  # noqa: T201 - the command's answer
    for path in written:
        print(f"wrote {path}")  # noqa: T201
    return 0 if found.passed else 1


def _document() -> None:
    from conformance import document
    from conformance.evidence import committed_evidence
    from conformance.json_files import write_text
    from conformance.policy import RELEASE, read_policy
    from ptycho_torch.contract import load_contract, specs_dir

    write_text(specs_dir() / document.FILE, document.document(load_contract()))
    # Only a checkout has documents for people.
    path = specs_dir().parent / document.NUMBERS_FILE
    if path.is_file():
        numbers = document.numbers(committed_evidence(), read_policy(RELEASE))
        write_text(path, document.with_numbers(path.read_text(encoding="utf-8"), numbers))


def _calibrate(output: Path, bundles: Sequence[Path], seeds: int) -> None:
    import dataclasses

    from conformance.bundle import read_bundle
    from conformance.calibrate import RUNS, calibrate
    from conformance.draws import GRAPHS, draw_case
    from conformance.keras_subject import KerasSubject
    from conformance.measured import FILE, load_measured
    from ptycho_tf_bridge.backend import keras, tensorflow
    from ptycho_torch.contract import read_yaml

    cases = [read_bundle(path).case for path in bundles]
    cases += [
        dataclasses.replace(
            draw_case(settings, seed, batch=3 if settings.N == 64 else 1, modes=1 + seed % 2), name=f"{name}/{seed}"
        )
        for name, settings in GRAPHS.items()
        # What float32 costs a sum over many pixels varies most from draw to draw.
        for seed in range(seeds * settings.N // 64)
    ]
    tables = calibrate(
        cases,
        lambda case: KerasSubject(case.settings, "float32"),
        load_measured().limits,
        lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201 - a command shows its progress
    )
    content = {
        "provenance": {
            "tensorflow": tensorflow().__version__,
            "keras": keras().__version__,
            "cases": [case.name for case in cases],
            "runs_per_case": RUNS,
        },
        "limits": read_yaml(FILE)["limits"],
        **tables,
    }
    output.write_text(_HEADER + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110))


def _calibrate_training(output: Path | None, runs: int) -> None:
    from conformance.keras_subject import KerasSubject
    from conformance.training_envelope import FILE, record_envelope
    from conformance.training_runs import SETTINGS
    from ptycho_tf_bridge.backend import keras, tensorflow

    record_envelope(
        FILE if output is None else output,
        KerasSubject(SETTINGS, "float32"),
        {"tensorflow": tensorflow().__version__, "keras": keras().__version__},
        lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201 - a command shows its progress
        runs,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if it succeeded, 1 with one clear line if not, or the exit code of the gate."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "document":
            _document()
        elif options.command == "clauses":
            return _clauses(options.ids, options.json)
        elif options.command == "verify":
            return _verify(options)
        elif options.command == "calibrate-training":
            _calibrate_training(options.output, options.runs)
        elif options.command == "gate":
            return command_gate.run(options)
        elif options.command == "record":
            return command_record.run(options)
        elif options.command == "study":
            return command_study.run(options)
        else:
            _calibrate(options.output, options.bundle, options.seeds)
    except (PtychoError, OSError) as err:
        if options.debug:
            raise
        print(f"error: {err}", file=sys.stderr)  # noqa: T201
        return 1
    return 0

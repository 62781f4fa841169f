"""The pytest plugin: options, test parameters and the summary of ``pytest conformance``.

Registered as an entry point, so that the options exist for an installed wheel too. It is loaded by every pytest
run of the environment, and so imports neither torch nor the rest of the suite before a conformance test asks.
"""

from __future__ import annotations

import os
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conformance.commands import words as command_words
from conformance.suite import DTYPES, OURS, TIERS, VARIANTS, clauses_of, short_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from _pytest.mark.structures import ParameterSet

    from conformance.report.results import Outcome, Result
    from conformance.session.bench import Bench, Planned
    from conformance.session.targets import Target
    from conformance.subjects.candidate import Factory, Origin

_PACKAGE = "conformance."
_FILES_OF = {
    "parity_case": ("test_network.py", "test_config_sync.py"),
    "parity_recorded": ("test_network.py", "test_operations.py"),
    "parity_scan": ("test_network.py", "test_data_contract.py"),
    "parity_keras": ("test_network.py", "test_float64.py"),
    "parity_operations": ("test_operations.py",),
    "parity_tf_config": ("test_config_sync.py",),
}

_NO_REDUCED = "no row of lower precision was chosen: --parity-variants bf16,tf32"
_NO_ROWS = "no further rows were chosen: --parity-variants all, or --parity-tier full"
_OF_ROWS = ("test_variant", "test_products_run_in_what_the_row_says")

_BENCH: pytest.StashKey[Bench] = pytest.StashKey()
_PLAN: pytest.StashKey[tuple[Planned, ...]] = pytest.StashKey()
_NOTES: pytest.StashKey[list[str]] = pytest.StashKey()
_PREVIOUS: pytest.StashKey[Mapping[str, Any]] = pytest.StashKey()
_DIGESTS: pytest.StashKey[tuple[str, str]] = pytest.StashKey()
_CANDIDATE: pytest.StashKey[tuple[Factory, Origin]] = pytest.StashKey()
_KEPT: pytest.StashKey[_Kept] = pytest.StashKey()
_WRITTEN: pytest.StashKey[list[str]] = pytest.StashKey()

JUNIT = "parity.xml"
_LONGEST_REASON = 2000


_OPTIONS: Mapping[str, tuple[str, tuple[str, ...] | str, str]] = {
    "--parity-candidate": (OURS, "MODULE:FACTORY", "judge another candidate: see docs/judge_your_port.md"),
    "--parity-device": ("auto", ("cpu", "cuda", "auto"), "where it runs; auto (default) judges every device there is"),
    "--parity-dtype": ("all", ("float32", "float64", "all"), "dtypes judged (default: all)"),
    "--parity-reference": (
        *("", "keras|live:PACKAGE|recorded|NAME|PATH.npz"),
        "judge only against live Keras, against a reference package, which is judged too (installed, live:ptycho, or "
        "of a checkout, live:/src/PtychoPINN), only against the embedded recordings, or only against one recording, "
        "embedded (n64_g2_base) or a file (default: the embedded ones, and live Keras where TensorFlow is installed)",
    ),
    "--parity-scan": (
        *("", "PATH"),
        "hold a scan, or every scan of a folder, against the data contract, and judge the network on its patterns, "
        "positions and probe",
    ),
    "--parity-tf-config": (
        *("", "PACKAGE.MODULE|PATH"),
        "compare the dataclasses of a TensorFlow reference (installed, ptycho.config.config, or a checkout's path) "
        "with specs/configuration.yaml, and list every drift and what it means; with --parity-report also "
        "configuration.md, a row for each field",
    ),
    "--parity-report": (
        *("", "DIR"),
        "write the report to DIR: parity.html to look at, parity.json for `python -m conformance gate`, parity.xml "
        "(JUnit) and parity.txt",
    ),
    "--parity-previous": ("", "REPORT.json", "show what has changed since this report, that of the previous release"),
    "--parity-variants": (
        *("", "none|all|ROW,…"),
        "judge the recordings in further rows, each with a budget of its own: "
        f"{', '.join(VARIANTS)} (default: none in tier quick, all in the others)",
    ),
    "--parity-tier": ("quick", TIERS, "quick (default, minutes), full (more graphs and draws), study (may take hours)"),
    "--parity-seed": (
        *("0", "N|random"),
        "seed of clean draws (default: 0, so that the same code gets the same verdict); random draws afresh, and the "
        "summary prints the seed",
    ),
}
"""Option → (default, choices or what the help shows for its value, help); each is a setting of ini files too."""

_OF_FOLDERS = ("--parity-scan", "--parity-report", "--parity-previous")
"""Options whose paths, in an ini file, begin at its folder."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ``--parity-…`` options, and each as a setting, ``parity_…``."""
    group = parser.getgroup("parity", "parity of the PyTorch network with its TensorFlow reference")
    for option, (_, value, text) in _OPTIONS.items():
        # No defaults here: what is not said on the command line may be said in the ini file.
        group.addoption(option, help=text, **{"metavar" if isinstance(value, str) else "choices": value})
        parser.addini(_setting(option), help=text, default="")


def _setting(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _settle(config: pytest.Config) -> None:
    """Give every option the value of the command line, else of the ini file, else its default."""
    # An ini file speaks to runs of this suite: no other run is to read recordings or make a folder.
    is_asked = _is_asked_for(config.args)
    for option, (default, choices, _) in _OPTIONS.items():
        name = _setting(option)
        if getattr(config.option, name) is None:
            value = str(config.getini(name)) if is_asked else ""
            if value and not isinstance(choices, str) and value not in choices:
                raise pytest.UsageError(f"{config.inipath}: {name} = {value!r}; expected one of {', '.join(choices)}.")
            if value and option in _OF_FOLDERS and config.inipath is not None:
                value = str(config.inipath.parent / value)
            setattr(config.option, name, value or default or None)
    embedded = Path(__file__).with_name("recordings") / f"{config.option.parity_reference}.npz"
    if embedded.stem == config.option.parity_reference and embedded.is_file():
        config.option.parity_reference = str(embedded)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Obey no settings and load no ``conftest.py`` that pytest found by mistake; the next hook starts it again."""
    if command_words.is_misread(early_config):
        args.clear()
        early_config.known_args_namespace.noconftest = True


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | pytest.ExitCode | None:
    """Start again where pytest took the folder of the data for its own."""
    if command_words.is_misread(config) or command_words.caches_beside_data(config):
        return command_words.run_again(config)
    return None


@pytest.hookimpl(tryfirst=True)  # before pytest's own JUnit writer looks where to write
def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse options that cannot be met before anything is collected."""
    _settle(config)
    config.addinivalue_line("markers", "parity_candidate: judges whom --parity-candidate names")
    config.addinivalue_line("markers", "parity_case: judges the case that --parity-reference names")
    config.addinivalue_line("markers", "parity_recorded: judges what is recorded in the package")
    config.addinivalue_line("markers", "parity_scan: judges the scans that --parity-scan names")
    config.addinivalue_line("markers", "parity_operations: judges a recording of single operations")
    config.addinivalue_line("markers", "parity_keras: judges against live Keras")
    config.addinivalue_line("markers", "parity_tf_config: judges the dataclasses that --parity-tf-config names")
    config.addinivalue_line("markers", "parity_dtype(name): judges only this dtype")
    config.addinivalue_line("markers", "parity_clause(*ids): the clauses of the specification that the test judges")
    config.stash[_NOTES], config.stash[_WRITTEN], config.stash[_KEPT] = [], [], _Kept()
    config.pluginmanager.register(config.stash[_KEPT], "parity_kept")
    if getattr(config.option, "numprocesses", None) and _is_asked_for(config.args):
        # One measurement serves many tests. xdist looks at these after this hook.
        config.option.numprocesses, config.option.dist, config.option.tx = None, "no", []
        config.stash[_NOTES].append("-n was left out: one measurement serves many tests, so they run in one process")
    if _is_asked_for(config.args):
        from ptycho_tf_bridge.start import mixed_up

        if line := mixed_up():
            raise pytest.UsageError(line.removeprefix("error: "))
    report = config.getoption("--parity-report")
    if report:
        try:
            Path(report).mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise pytest.UsageError(f"--parity-report {report}: no folder can be made there ({err}).") from err
        # Without the plugin junitxml there is no such option.
        if getattr(config.option, "xmlpath", "") is None:
            config.option.xmlpath = str(Path(report) / JUNIT)
    if config.getoption("--parity-previous"):
        _read_previous(config)
    seed = config.getoption("--parity-seed")
    if seed != "random" and not seed.isdecimal():
        raise pytest.UsageError(
            f"--parity-seed: found {seed!r}; expected a whole number that is not negative, or random."
        )
    _rows(config)
    if config.getoption("--parity-candidate") != OURS:
        _load_candidate(config)
    choices = ("--parity-reference", "--parity-scan", "--parity-tf-config")
    named = [each for each in choices if config.getoption(each)]
    if len(named) > 1:
        raise pytest.UsageError(f"{' and '.join(named)} each name a case; give one of them.")
    if config.getoption("--parity-tf-config"):
        from conformance.spec.drift import import_reference
        from ptycho_torch.errors import PtychoError

        try:
            import_reference(config.getoption("--parity-tf-config"))
        except PtychoError as err:
            raise pytest.UsageError(f"--parity-tf-config: {err}") from err
    if config.getoption("--parity-reference") == "keras":
        from ptycho_tf_bridge import backend

        if not backend.is_available():
            raise pytest.UsageError(
                '--parity-reference keras: TensorFlow is not installed; pip install "ptycho-torch[tf]", '
                "or give a recording: --parity-reference PATH.npz"
            )
    if config.getoption("--parity-device") == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError(
                f"--parity-device cuda: torch {torch.__version__} finds no CUDA device here; use --parity-device cpu, "
                "or install a CUDA build of torch and check `nvidia-smi`."
            )
    if config.getoption("--parity-reference") or config.getoption("--parity-scan"):
        planned_cases(config)


def _load_candidate(config: pytest.Config) -> None:
    """Import the factory of a candidate of others; what cannot be judged of it is refused."""
    from conformance.subjects.candidate import load_factory
    from ptycho_torch.errors import PtychoError

    name = config.getoption("--parity-candidate")
    if config.getoption("--parity-tf-config") or _rows(config):
        raise pytest.UsageError(
            f"--parity-candidate {name}: --parity-tf-config and --parity-variants judge this package and no candidate; "
            "leave them out."
        )
    try:
        config.stash[_CANDIDATE] = load_factory(name, config.invocation_params.dir)
    except PtychoError as err:
        raise pytest.UsageError(f"--parity-candidate: {err}") from err
    # One wrong stage fails many tests, each in our source: the tables say more of it, and --tb and -r still do.
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "no"
    if config.option.reportchars == "fE":
        config.option.reportchars = "E"


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what a run of this suite judges; nothing in runs of others."""
    if not _is_asked_for(config.args):
        return None
    said = {option: config.getoption(option) for option in _OPTIONS}
    return "parity: " + ", ".join(
        f"{option.removeprefix('--parity-')} {value}" for option, value in said.items() if value
    )


def _is_asked_for(arguments: Sequence[str]) -> bool:
    """Whether arguments of pytest reach into this package: as a module, as a path, or as a folder around it."""
    here = Path(__file__).resolve().parent
    for argument in arguments:
        place = argument.partition("::")[0]
        path = Path(place).resolve()
        if place.partition(".")[0] == here.name or path == here or here in path.parents or path in here.parents:
            return True
    return False


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note for which sources a report will hold: those that are read now, whatever is edited while it runs."""
    if session.config.getoption("--parity-report"):
        from conformance.provenance.digest import numerical_digest, spec_digest

        session.config.stash[_DIGESTS] = (numerical_digest(), spec_digest())


def _read_previous(config: pytest.Config) -> None:
    from conformance.report.results import read_report
    from ptycho_torch.errors import PtychoError

    if not config.getoption("--parity-report"):
        raise pytest.UsageError("--parity-previous is shown in a report; give --parity-report DIR too.")
    try:
        config.stash[_PREVIOUS] = read_report(Path(config.getoption("--parity-previous")))
    except PtychoError as err:
        raise pytest.UsageError(f"--parity-previous: {err}") from err


def _devices(config: pytest.Config) -> tuple[str, ...]:
    import torch

    chosen = config.getoption("--parity-device")
    if chosen != "auto":
        return (str(chosen),)
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _dtypes(config: pytest.Config) -> tuple[str, ...]:
    chosen = config.getoption("--parity-dtype")
    return DTYPES if chosen == "all" else (str(chosen),)


def _rows(config: pytest.Config) -> tuple[str, ...]:
    """Return the further rows of this run."""
    is_ours = config.getoption("--parity-candidate") == OURS
    chosen = config.getoption("--parity-variants") or (
        "all" if is_ours and config.getoption("--parity-tier") != "quick" else "none"
    )
    if chosen in ("none", "all"):
        return VARIANTS if chosen == "all" else ()
    rows = tuple(dict.fromkeys(row.strip() for row in chosen.split(",")))
    unknown = [row for row in rows if row not in VARIANTS]
    if unknown:
        raise pytest.UsageError(
            f"--parity-variants: found no row {unknown[0]!r}; expected none, all, or some of {', '.join(VARIANTS)}."
        )
    return rows


def _operations(config: pytest.Config) -> bool:
    """Whether the reference that was named is a recording of single operations."""
    from conformance.recordings.operations import is_operations_recording

    reference = config.getoption("--parity-reference")
    return _is_file(reference) and is_operations_recording(Path(str(reference)))


def _is_file(reference: str | None) -> bool:
    return bool(reference) and reference not in ("keras", "recorded") and not str(reference).startswith("live:")


def planned_cases(config: pytest.Config) -> tuple[Planned, ...]:
    """Return the cases of this run; a file that cannot be read is a usage error in one line."""
    if _PLAN not in config.stash:
        from conformance.recordings.operations import read_operations
        from conformance.session.bench import plan
        from ptycho_torch.errors import PtychoError

        reference, scan = config.getoption("--parity-reference"), config.getoption("--parity-scan")
        try:
            if _operations(config):
                read_operations(Path(str(reference)))
                cases: tuple[Planned, ...] = ()
            else:
                cases = plan(reference, scan, config.getoption("--parity-tier"))
        except PtychoError as err:
            raise pytest.UsageError(str(err)) from err
        config.stash[_PLAN] = cases
        config.stash[_NOTES] += [str(each) for each in {case.package for case in cases if case.package is not None}]
    return config.stash[_PLAN]


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each conformance test its cases; the id of a test begins with the clause it judges."""
    names = metafunc.fixturenames
    if "parity_target" in names:
        from conformance.session.targets import targets

        chosen = planned_cases(metafunc.config)
        test, config = metafunc.function.__name__, metafunc.config
        rows = _rows(config) if test == "test_variant" else _dtypes(config)
        found = targets(test, chosen, _devices(config), rows)
        no_rows = [pytest.param(None, id="-", marks=pytest.mark.skip(_NO_ROWS))] if not rows else []
        metafunc.parametrize("parity_target", [_target_param(each) for each in found] or no_rows)
    if "parity_scan_clause" in names:
        metafunc.parametrize("parity_scan_clause", _scan_clauses(metafunc.config.getoption("--parity-scan")))
    if "parity_row" in names:
        reduced = [row for row in _rows(metafunc.config) if not row.startswith("float32")]
        metafunc.parametrize("parity_row", reduced or [pytest.param("", marks=pytest.mark.skip(_NO_REDUCED))])
    if "parity_device" in names:
        metafunc.parametrize("parity_device", _devices(metafunc.config))
    if "parity_dtype" in names:
        metafunc.parametrize("parity_dtype", _dtypes(metafunc.config))


def _target_param(target: Target) -> ParameterSet:
    return pytest.param(target, id=target.id, marks=pytest.mark.parity_clause(*target.clauses))


def _scan_clauses(scan: str | None) -> list[ParameterSet]:
    """Return every clause for every file of a scan or folder; the test's id is clause and file."""
    from ptycho_torch.check import CHECKED
    from ptycho_torch.files.folders import scan_paths

    if not scan:
        # One test that says why it is skipped.
        return [pytest.param(None, id="-", marks=pytest.mark.parity_clause(*CHECKED))]
    return [
        pytest.param((path, clause), id=f"{clause}-{path.stem}", marks=pytest.mark.parity_clause(clause))
        for path in scan_paths(Path(scan))
        for clause in CHECKED
    ]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where one case was named, do not even read the tests that say nothing about it: a replay is to be quick."""
    if collection_path.parent != Path(__file__).parent or not collection_path.name.startswith("test_"):
        return None
    marker = _marker_of_case(config)
    if _CANDIDATE in config.stash:
        return True if collection_path.name != "test_network.py" else None
    if _is_file(config.getoption("--parity-reference")) and collection_path.name == "test_config_sync.py":
        return True  # a recording reads no settings
    return True if marker and collection_path.name not in _FILES_OF[marker] else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep to what the options chose: one case, one dtype. Other suites stay as they are."""
    dtype, case = config.getoption("--parity-dtype"), _marker_of_case(config)
    dropped = {item for item in items if _is_ours(item) and not _is_chosen(item, dtype, case)}
    if _CANDIDATE in config.stash:
        dropped |= {item for item in items if _is_ours(item) and not item.get_closest_marker("parity_candidate")}
    if case is not None and not _rows(config):
        # Where one case was named, it is enough to say nothing of rows that nobody asked for.
        dropped |= {item for item in items if _is_ours(item) and getattr(item, "originalname", "") in _OF_ROWS}
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]
    for item in items:
        if _is_ours(item):
            item.user_properties += _properties(item)


def _properties(item: pytest.Item) -> list[tuple[str, object]]:
    """Return what a test is about; it stands in the JUnit file, and the report reads it."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    target = parameters.get("parity_target")  # pytest has an object of its own where there are no targets
    about = {
        "stage": getattr(target, "stage", ""),
        "case": getattr(getattr(target, "planned", None), "name", ""),
        "device": getattr(target, "device", "") or parameters.get("parity_device", ""),
        "dtype": getattr(target, "dtype", "") or parameters.get("parity_dtype", "") or _dtype_of(item),
    }
    clauses: list[tuple[str, object]] = [("clause", clause) for clause in clauses_of(item)]
    return [("parity", "1"), *clauses, *((name, value) for name, value in about.items() if value)]


def _dtype_of(item: pytest.Item) -> str:
    marker = item.get_closest_marker("parity_dtype")
    return str(marker.args[0]) if marker else ""


def _marker_of_case(config: pytest.Config) -> str | None:
    """Marker of the tests that speak of the one case that was named, if one was."""
    reference = config.getoption("--parity-reference")
    if reference and _operations(config):
        return "parity_operations"
    if reference in ("keras", "recorded"):
        return f"parity_{reference}"
    if config.getoption("--parity-scan"):
        return "parity_scan"
    if config.getoption("--parity-tf-config"):
        return "parity_tf_config"
    return "parity_case" if reference else None


def _is_ours(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.module.__name__.startswith(_PACKAGE)


def _is_chosen(item: pytest.Item, dtype: str, case: str | None) -> bool:
    marks = {mark.name: mark for mark in item.iter_markers()}
    if "parity_dtype" in marks and dtype not in ("all", marks["parity_dtype"].args[0]):
        return False
    return case is None or case in marks


@pytest.fixture(scope="session")
def parity_bench(request: pytest.FixtureRequest) -> Bench:
    """Run cases once and keep their verdicts for all tests."""
    from conformance.session.bench import Bench

    stash = request.config.stash
    if _BENCH not in stash:
        stash[_BENCH] = Bench(factory=stash[_CANDIDATE][0]) if _CANDIDATE in stash else Bench()
    return stash[_BENCH]


@pytest.fixture(scope="session")
def parity_report_file(request: pytest.FixtureRequest) -> Path:
    """Return the report that this run writes, or the one that it would write."""
    return Path(request.config.getoption("--parity-report") or "DIR") / "parity.json"


@pytest.fixture(scope="session")
def parity_notes(request: pytest.FixtureRequest) -> list[str]:
    """Lines that the summary prints: measured numbers that belong to no single stage."""
    return request.config.stash[_NOTES]


@pytest.fixture(scope="session")
def parity_tier(request: pytest.FixtureRequest) -> str:
    """Name the tier of this run."""
    return str(request.config.getoption("--parity-tier"))


@pytest.fixture(scope="session")
def parity_seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of clean draws."""
    chosen = request.config.getoption("--parity-seed")
    return secrets.randbits(32) if chosen == "random" else int(chosen)


@pytest.fixture(scope="session")
def operations_recording(request: pytest.FixtureRequest) -> Path:
    """Return the recording of single operations to judge against."""
    from conformance.recordings.bundle import RECORDINGS

    reference = request.config.getoption("--parity-reference")
    return Path(reference) if reference and _operations(request.config) else RECORDINGS / "ops_1.npz"


class _Kept:
    """What became of the tests, whatever the terminal shows: ``--no-summary`` and its like skip its hooks.

    Attributes:
        reports: of pytest, those of the suite.
        deselected: how many tests options left out.
    """

    def __init__(self) -> None:
        self.reports: list[pytest.TestReport] = []
        self.deselected = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a report of the suite."""
        if ("parity", "1") in report.user_properties:
            self.reports.append(report)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Count tests."""
        self.deselected += len(items)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report, where one was asked for, and what GitHub shows, where it runs the suite."""
    config = session.config
    directory, previous = config.getoption("--parity-report"), config.stash.get(_PREVIOUS, None)
    on_github = os.environ.get("GITHUB_STEP_SUMMARY") if config.stash[_KEPT].reports else None
    if hasattr(config, "workerinput") or not (directory or on_github):
        return
    from conformance.report.difference import told
    from conformance.report.results import as_json, run_headline, write_report
    from conformance.session.bench import Bench

    bench = config.stash.get(_BENCH, None) or Bench()
    measured = config.stash[_NOTES]
    outcome = _outcome(config.stash[_KEPT], int(exitstatus), measured, config)
    content = as_json(bench, outcome)
    change = told(previous, content) if previous else ""
    lines: list[str] = []
    if directory:
        written = write_report(Path(directory), bench, outcome, previous)
        junit = getattr(config.option, "xmlpath", None)
        lines += [f"wrote {path}" for path in (*written, *([Path(junit)] if junit else []))]
    lines += [change] if change else []
    if on_github:
        from conformance.report.github import notes, summary

        with Path(on_github).open("a", encoding="utf-8") as file:
            file.write(summary(content, change) + "\n")
        lines += notes(bench, outcome, Path(os.environ.get("GITHUB_WORKSPACE", ".")))
    config.stash[_WRITTEN].extend([*lines, run_headline(bench, outcome)])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """Print the tables, and what was written."""
    notes = config.stash[_NOTES]
    bench = config.stash.get(_BENCH, None)
    directory = config.getoption("--parity-report")
    scan = config.getoption("--parity-scan")
    if bench is None and not notes and not directory and not scan and not config.stash[_WRITTEN]:
        return
    terminalreporter.section("parity")
    if scan:
        from conformance.cases.scan import examined
        from ptycho_torch.check import describe
        from ptycho_torch.files.folders import scan_paths

        for path in scan_paths(Path(scan)):
            for line in describe(examined(path)):
                terminalreporter.write_line(line, red=line.lstrip().startswith("BROKEN"))
    for line in _summary(bench, notes):
        terminalreporter.write_line(line, red=line.startswith("FAILED"), green=line.startswith("passed"))
    for line in config.stash[_WRITTEN]:
        terminalreporter.write_line(line, red=line.startswith("FAILED"), green=line.startswith("passed"))


def _outcome(kept: _Kept, exit_status: int, notes: Sequence[str], config: pytest.Config) -> Outcome:
    from conformance.report.results import Outcome

    results: dict[str, Result] = {}
    # A test can fail and break its teardown too; the first word counts.
    for report in sorted(kept.reports, key=lambda report: _STATES.index(_state(report))):
        if report.when == "call" or not report.passed:
            found = _result(report, _state(report))
            results.setdefault(found.test, found)
    return Outcome(
        exit_status=exit_status,
        results=tuple(results[name] for name in sorted(results)),
        deselected=kept.deselected,
        notes=tuple(notes),
        tier=config.getoption("--parity-tier"),
        devices=_devices(config),
        command=shlex.join(["pytest", *map(str, config.invocation_params.args)]),
        digests=config.stash.get(_DIGESTS, None),
        candidate=config.stash[_CANDIDATE][1] if _CANDIDATE in config.stash else None,
        package=next((case.package for case in config.stash.get(_PLAN, ()) if case.package is not None), None),
    )


_STATES = ("failed", "skipped", "passed")


def _state(report: pytest.TestReport) -> str:
    """Return one of ``_STATES``. What is expected to fail has failed: nothing excuses a test of the suite."""
    return "failed" if hasattr(report, "wasxfail") else str(report.outcome)


def _result(report: pytest.TestReport, state: str) -> Result:
    """Return what a report of pytest says about a test of the suite."""
    from conformance.report.results import Result

    properties = list(report.user_properties)
    about = {name: str(value) for name, value in properties if name in ("stage", "case", "device", "dtype")}
    clauses = tuple(str(value) for name, value in properties if name == "clause")
    return Result(short_id(report.nodeid), state, clauses, **about, reason=_reason(report), seconds=report.duration)


def _reason(report: Any) -> str:
    """Return why a test failed or was skipped, without the traceback."""
    if hasattr(report, "wasxfail"):
        text = str(report.wasxfail).removeprefix("reason: ")
    elif isinstance(report.longrepr, tuple):
        text = str(report.longrepr[2]).removeprefix("Skipped: ")
    else:
        text = str(getattr(getattr(report.longrepr, "reprcrash", None), "message", report.longrepr or ""))
        # What the test says, without pytest's reading of its expression.
        text = text.removeprefix("AssertionError: ").partition("\nassert ")[0]
    return text[:_LONGEST_REASON]


def _summary(bench: Bench | None, notes: Sequence[str]) -> Iterator[str]:
    from conformance.report.results import headline, table
    from conformance.session.bench import MISSING, NO_TENSORFLOW
    from ptycho_tf_bridge import backend

    yield from notes
    if not backend.is_available():
        yield NO_TENSORFLOW
    if bench is None:
        return

    reports = list(bench.reports.values())
    # In float64 only a failure is worth a table: everything else lies at rounding. Who gave nothing has none.
    tabled = [
        report
        for report in reports
        if (report.dtype == "float32" or not report.passed)
        and any(each.reason != MISSING for each in report.verdicts.values())
    ]
    for report in tabled:
        yield ""
        yield from table(report)
    yield ""
    if bench.checks and not bench.failed_checks:
        yield f"passed  {len(bench.checks)} steps of configuration, bridge, data and optimiser"
    yield from (each.explain() for each in bench.failed_checks)
    yield from dict.fromkeys(report.error for report in reports if "\n" in report.error)
    yield from (headline(report) for report in reports)
    for name, verdicts in bench.records.items():
        failed = [verdict for verdict in verdicts.values() if not verdict.passed]
        state = f"FAILED  {failed[0].explain()}" if failed else "passed"
        yield f"{state}  reference of {name}: against its ceilings, and the float64 oracle against a stored truth"

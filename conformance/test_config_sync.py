"""Configurations stay in step: an installed reference with our table, and the table with what is really read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from conformance.judge.config_reads import Reads, findings, keras_reads, legacy_findings, live_reads, torch_reads
from conformance.provenance.json_files import write_text
from conformance.session.bench import NO_TENSORFLOW
from conformance.spec.drift import CLAUSES, Drift, as_markdown, compare, has_legacy_names, import_reference
from conformance.subjects.package import identify
from ptycho_tf_bridge import backend
from ptycho_torch.contracts.config_schema import Setting, load_schema

SCHEMA = load_schema()


def _settings(clause: str) -> list[object]:
    return [
        pytest.param(setting, id=f"{clause}-{name}", marks=pytest.mark.parity_clause(clause))
        for name, setting in SCHEMA.settings.items()
    ]


# ------------------------------------------------------------------------------------------- an installed reference


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest) -> ModuleType:
    """Return the module of dataclasses that was named."""
    name = request.config.getoption("--parity-tf-config")
    if not name:
        pytest.skip("no installed reference was named: pytest conformance --parity-tf-config ptycho.config.config")
    return import_reference(name)


@pytest.fixture(scope="module")
def found(reference: ModuleType, parity_notes: list[str], request: pytest.FixtureRequest) -> tuple[Drift, ...]:
    """Return every drift, each of which the summary lists too; the report gets a page with every field."""
    compared = compare(reference)
    about = str(identify(reference.__name__.partition(".")[0]))
    count = f"{len(compared.drifts)} drifts from specs/configuration.yaml in {len(compared.fields)} fields"
    parity_notes += [about, f"{reference.__name__}: {count}", *map(str, compared.drifts)]
    if directory := request.config.getoption("--parity-report"):
        write_text(Path(directory) / "configuration.md", as_markdown(about, compared))
    return compared.drifts


@pytest.mark.parity_tf_config
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, id=clause, marks=pytest.mark.parity_clause(clause)) for kind, clause in CLAUSES.items()],
)
def test_reference_is_the_one_that_the_table_knows(reference: ModuleType, found: tuple[Drift, ...], kind: str) -> None:
    """No drift of one kind between the dataclasses that are installed and the table."""
    if kind == "legacy name" and not has_legacy_names(reference):
        pytest.skip(f"{reference.__name__} has neither dataclass_to_legacy_dict nor KEY_MAPPINGS")
    assert not [drift for drift in found if drift.kind == kind], "\n".join(
        str(drift) for drift in found if drift.kind == kind
    )


# ------------------------------------------------------------------------------------------------- what is read here


@pytest.fixture(scope="module")
def ours() -> Iterator[Reads]:
    """Return what this project reads."""
    pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield torch_reads(Path(folder))


@pytest.fixture(scope="module")
def theirs() -> Reads:
    """Return what our Keras model of the reference reads."""
    if not backend.is_available():
        pytest.skip(NO_TENSORFLOW)
    return keras_reads()


@pytest.mark.parametrize("setting", _settings("CONFIG-06"))
def test_setting_is_read_here(ours: Reads, setting: Setting) -> None:
    """A setting is read by this project exactly if the table says so."""
    assert setting.name not in findings(SCHEMA, "torch", ours), findings(SCHEMA, "torch", ours)[setting.name]


@pytest.mark.parametrize("setting", _settings("CONFIG-07"))
def test_setting_is_read_by_the_model_of_the_reference(theirs: Reads, setting: Setting) -> None:
    """A setting is read by the Keras model exactly if the table says so."""
    assert setting.name not in findings(SCHEMA, "keras", theirs), findings(SCHEMA, "keras", theirs)[setting.name]


@pytest.mark.parity_case
@pytest.mark.parity_clause("CONFIG-09")
def test_reference_reads_what_the_table_says(request: pytest.FixtureRequest, parity_notes: list[str]) -> None:
    """An installed reference reads the keys of its network, and none that it is said not to read."""
    kind, _, package = str(request.config.getoption("--parity-reference") or "").partition(":")
    if kind != "live":
        pytest.skip("no installed reference was named: pytest conformance --parity-reference live:ptycho")
    reads = live_reads(package)
    parity_notes.append(f"{package} read {len(reads)} keys of its dictionary to build and run its network")
    found = legacy_findings(SCHEMA, reads)
    assert not found, "\n".join(found.values())


@pytest.mark.parity_clause("CONFIG-06")
def test_readers_of_the_reference_have_a_counterpart_there() -> None:
    """What TensorFlow is said to read is there, and no field that its PyTorch side alone reads."""
    for name, readers in SCHEMA.readers.items():
        setting = SCHEMA.settings[name]
        if "tensorflow" in readers.by:
            assert setting.there, name
            assert setting.backend in ("", "tensorflow"), name
        elif setting.there.get("tensorflow"):
            assert setting.backend == "pytorch", f"{name} is a field that TensorFlow does not read, so say who does"

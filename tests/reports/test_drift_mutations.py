"""Twenty-five changes of the reference's dataclasses are found, and nothing else: in a stand-in and in the real ones.

PTYCHO_REFERENCE names a checkout of the TensorFlow reference; its module of dataclasses is read, and changed in a copy.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from conformance.spec.drift import as_markdown, compare, patch
from ptycho_torch.contracts.config_schema import Foreign, load_schema

STAND_IN = Path(__file__).parents[1] / "support" / "archives" / "stand_in_config.py"
CHECKOUT = os.environ.get("PTYCHO_REFERENCE", "")

Change = Callable[[ast.Module], None]


def body(module: ast.Module, name: str) -> list[ast.stmt]:
    (found,) = [each for each in module.body if isinstance(each, ast.ClassDef) and each.name == name]
    return found.body


def field(module: ast.Module, name: str) -> ast.AnnAssign:
    dataclass, _, attribute = name.partition(".")
    (found,) = [
        each
        for each in body(module, dataclass)
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.target.id == attribute
    ]
    return found


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def annotated(name: str, annotation: str) -> Change:
    return lambda module: setattr(field(module, name), "annotation", expression(annotation))


def defaults_to(name: str, default: str) -> Change:
    return lambda module: setattr(field(module, name), "value", expression(default))


def renamed(name: str, new: str) -> Change:
    return lambda module: setattr(field(module, name), "target", ast.Name(new, ast.Store()))


def removed(name: str) -> Change:
    return lambda module: body(module, name.partition(".")[0]).remove(field(module, name))


def added(dataclass: str, text: str) -> Change:
    # After the last field, so that fields without a default stay in front.
    def change(module: ast.Module) -> None:
        statements = body(module, dataclass)
        last = max(number for number, each in enumerate(statements) if isinstance(each, ast.AnnAssign))
        statements[last + 1 : last + 1] = ast.parse(text).body

    return change


def keyed(name: str, key: str | None) -> Change:
    """Change, add or remove an entry of the table of legacy names, wherever it stands."""

    def change(module: ast.Module) -> None:
        (table,) = [
            each.value
            for each in ast.walk(module)
            if isinstance(each, ast.Assign)
            and isinstance(each.targets[0], ast.Name)
            and each.targets[0].id == "KEY_MAPPINGS"
            and isinstance(each.value, ast.Dict)
        ]
        entries = {ast.literal_eval(old): new for old, new in zip(table.keys, table.values, strict=True) if old}
        entries.pop(name, None)
        if key is not None:
            entries[name] = ast.Constant(key)
        table.keys, table.values = [ast.Constant(each) for each in entries], list(entries.values())

    return change


M, T, I, E = "ModelConfig", "TrainingConfig", "InferenceConfig", "PyTorchExecutionConfig"  # noqa: E741

MUTATIONS: dict[str, tuple[Change, set[tuple[str, str]]]] = {
    "int to Optional[int]": (annotated(f"{T}.batch_size", "Optional[int]"), {("choices", f"{T}.batch_size")}),
    "bool to Optional[bool]": (annotated(f"{M}.object_big", "Optional[bool]"), {("choices", f"{M}.object_big")}),
    "Optional[int] to int": (annotated(f"{T}.subsample_seed", "int"), {("choices", f"{T}.subsample_seed")}),
    "Literal to str": (annotated(f"{M}.amp_activation", "str"), {("choices", f"{M}.amp_activation")}),
    "Literal to int": (annotated(f"{M}.N", "int"), {("choices", f"{M}.N")}),
    "Literal of execution to str": (
        annotated(f"{E}.gradient_clip_algorithm", "str"),
        {("choices", f"{E}.gradient_clip_algorithm")},
    ),
    "str to Literal": (
        annotated(f"{E}.strategy", "Literal['auto', 'ddp', 'fsdp']"),
        {("choices", f"{E}.strategy")},
    ),
    "float to int": (annotated(f"{T}.mae_weight", "int"), {("choices", f"{T}.mae_weight")}),
    "a word less": (annotated(f"{E}.devices", "int"), {("choices", f"{E}.devices")}),
    "a choice more": (annotated(f"{M}.N", "Literal[64, 128, 256, 512]"), {("choices", f"{M}.N")}),
    "a choice less": (
        annotated(f"{T}.optimizer", "Literal['adam', 'adamw']"),
        {("choices", f"{T}.optimizer")},
    ),
    "a choice renamed": (
        annotated(f"{T}.scheduler", "Literal['Default', 'Exponential', 'Cosine', 'ReduceLROnPlateau']"),
        {("choices", f"{T}.scheduler")},
    ),
    "a choice of execution more": (
        annotated(f"{E}.spectral_bottleneck_gate_mode", "Literal['shared', 'per_block', 'none']"),
        {("choices", f"{E}.spectral_bottleneck_gate_mode")},
    ),
    "a number": (defaults_to(f"{T}.nphotons", "1e5"), {("default", f"{T}.nphotons")}),
    "a truth value": (defaults_to(f"{M}.probe_mask", "True"), {("default", f"{M}.probe_mask")}),
    "a path": (defaults_to(f"{I}.output_dir", "Path('elsewhere')"), {("default", f"{I}.output_dir")}),
    "a default in place of None": (defaults_to(f"{I}.n_groups", "512"), {("default", f"{I}.n_groups")}),
    "no default any more": (defaults_to(f"{I}.test_data_file", "Path('.')"), {("default", f"{I}.test_data_file")}),
    "a field renamed": (
        renamed(f"{T}.nepochs", "epochs"),
        {("vanished", f"{T}.nepochs"), ("new", f"{T}.epochs")},
    ),
    "a field of execution renamed": (
        renamed(f"{E}.pin_memory", "pinned"),
        {("vanished", f"{E}.pin_memory"), ("new", f"{E}.pinned")},
    ),
    "a field removed": (removed(f"{M}.pad_object"), {("vanished", f"{M}.pad_object")}),
    "a field added": (added(T, "restarts: int = 3"), {("new", f"{T}.restarts")}),
    "a legacy name changed": (keyed("object_big", "object.large"), {("legacy name", f"{M}.object_big")}),
    "a legacy name of two dataclasses removed": (
        keyed("test_data_file", None),
        {("legacy name", f"{T}.test_data_file"), ("legacy name", f"{I}.test_data_file")},
    ),
    "a legacy name added": (keyed("nepochs", "n_epochs"), {("legacy name", f"{T}.nepochs")}),
}


@pytest.fixture(params=["stand-in", "reference"])
def source(request: pytest.FixtureRequest) -> str:
    """Return the text of a module of dataclasses."""
    if request.param == "stand-in":
        return STAND_IN.read_text(encoding="utf-8")
    if not CHECKOUT:
        pytest.skip("no reference: PTYCHO_REFERENCE names no checkout of the TensorFlow program")
    return (Path(CHECKOUT) / "ptycho" / "config" / "config.py").read_text(encoding="utf-8")


def test_there_are_twenty_five() -> None:
    assert len(MUTATIONS) == 25


def test_nothing_is_found_where_nothing_was_changed(source: str, import_config: Callable[[str], ModuleType]) -> None:
    compared = compare(import_config(source))
    assert compared.drifts == ()
    assert list(patch(compared)) == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_change_is_found_and_nothing_else(source: str, import_config: Callable[[str], ModuleType], name: str) -> None:
    change, expected = MUTATIONS[name]
    tree = ast.parse(source)
    change(tree)
    compared = compare(import_config(ast.unparse(ast.fix_missing_locations(tree))))
    assert {(drift.kind, drift.field) for drift in compared.drifts} == expected
    assert len(compared.drifts) == len(expected)
    assert all(drift.means.endswith(".") for drift in compared.drifts)
    lines = [line for line in patch(compared) if line[0] in "+-"]
    assert {line[1:].split(":")[0].strip() for line in lines} == {field.partition(".")[2] for _, field in expected}


def test_a_renamed_field_is_said_to_be_perhaps_the_other(import_config: Callable[[str], ModuleType]) -> None:
    tree = ast.parse(STAND_IN.read_text(encoding="utf-8"))
    renamed(f"{T}.neighbor_count", "neighbours")(tree)
    means = {drift.field: drift.means for drift in compare(import_config(ast.unparse(tree))).drifts}
    assert means[f"{T}.neighbor_count"].endswith("Perhaps it is neighbours under another name.")
    assert means[f"{T}.neighbours"].endswith("Perhaps it is neighbor_count under another name.")


@pytest.mark.parametrize(
    ("change", "means"),
    [
        (
            defaults_to(f"{T}.nepochs", "80"),
            "A file that leaves it out is converted to max_epochs = 50, and this reference runs with 80, which is "
            "max_epochs = 80.",
        ),
        (defaults_to(f"{T}.momentum", "0.5"), "It has no counterpart here, so a converted configuration stays "),
        (annotated(f"{M}.N", "Literal[64, 128]"), "An exported 256 is refused there."),
        (
            annotated(f"{M}.amp_activation", "Literal['sigmoid', 'swish', 'softplus', 'relu', 'gelu']"),
            "'gelu' is converted to no amp_activation here, since it has no counterpart here; there is one for ",
        ),
        (
            keyed("probe_mask", "probe.masked"),
            "Saved parameters and archives of this reference hold nothing under 'probe.mask', so a converted model "
            "gets probe_mask = True, whatever 'probe.masked' says.",
        ),
    ],
    ids=["default", "no counterpart", "choice less", "choice more", "key"],
)
def test_a_drift_says_what_it_means(import_config: Callable[[str], ModuleType], change: Change, means: str) -> None:
    tree = ast.parse(STAND_IN.read_text(encoding="utf-8"))
    change(tree)
    (drift,) = compare(import_config(ast.unparse(ast.fix_missing_locations(tree)))).drifts
    assert drift.means.startswith(means)


def test_the_page_has_a_row_for_every_field_with_its_counterpart_or_the_reason(
    source: str, import_config: Callable[[str], ModuleType]
) -> None:
    compared = compare(import_config(source))
    rows = [line for line in as_markdown("the reference", compared).splitlines() if line.startswith("| `")]
    assert len(rows) == len(compared.fields) == 115
    counterparts = load_schema().counterparts["tensorflow"]
    for field_there, line in zip(compared.fields, rows, strict=True):
        what = counterparts[field_there.full_name]
        expected = f" because: {what.reason}" if isinstance(what, Foreign) else f"`{what.name}` ({what.owner})"
        assert expected in line

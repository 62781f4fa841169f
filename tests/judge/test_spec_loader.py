"""The loader of the specification: each way to break a clause is found, and the message names the clause."""

import copy
import dataclasses
import itertools

import pytest

from conformance.spec import loader as spec
from conformance.spec.loader import evaluate_condition, evaluate_shape, missing_and_unexpected
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.contracts import contract
from ptycho_torch.contracts.contract import SpecError

LETTERS = {"B": 3, "N": 64, "i": 1, "F": (32, 64)}
FLAGS = {"object_big": True, "probe_big": False, "pad_object": True}


@pytest.fixture
def stages():
    return copy.deepcopy(contract.read_yaml(spec.STAGES_FILE))


@pytest.fixture
def defects():
    return copy.deepcopy(contract.read_yaml(spec.DEFECTS_FILE))


def _clause(content, clause_id):
    return next(clause for clause in content["stages"] if clause["id"] == clause_id)


def test_the_spec_as_it_is_loads(stages, defects):
    assert spec.parse_stages(stages) == spec.load_stages()
    assert [defect.id for defect in spec.parse_defects(defects)] == [f"REF-{n:02d}" for n in range(1, 9)]


BROKEN = {
    "unknown field": ("merged", {"tolerance": 1e-6}, "tolerance"),
    "empty title": ("merged", {"title": ""}, "title"),
    "unknown dtype": ("merged", {"dtype": "complex64"}, "complex64"),
    "unknown layout": ("merged", {"layout": "channels_last"}, "channels_last"),
    "unknown weight": ("merged", {"weights": ["gamma"]}, "gamma"),
    "path without a module": ("merged", {"torch": "MergePatches"}, "MergePatches"),
    "input that does not exist": ("merged", {"inputs": ["patch"]}, "'patch'"),
    "input that comes later": ("merged", {"inputs": ["object"]}, "'object'"),
    "input of itself": ("merged", {"inputs": ["merged"]}, "'merged'"),
    "input that only some settings have": (
        "patches",
        {"inputs": ["decoder_amp.activation"]},
        "'decoder_amp.activation'",
    ),
    "condition on no setting": ("merged", {"when": "probe_huge"}, "probe_huge"),
    "condition that is no expression": ("merged", {"when": "probe_big or"}, "probe_big or"),
    "condition that calls": ("merged", {"when": "print(probe_big)"}, "print"),
    "condition that compares": ("merged", {"when": "probe_big == pad_object"}, "=="),
    "letter that no shape has": ("merged", {"shape_torch": "B, Q"}, "'Q'"),
    "block outside a block": ("merged", {"shape_torch": "B, F[i]"}, "'i'"),
    "empty axis": ("merged", {"shape_torch": "B, N - N"}, "shorter than 1"),
    "no variant holds": ("merged", {"variants": [{"when": "object_big"}] * 2}, "2 variants"),
    "block placeholder without blocks": ("merged", {"inputs": ["encoder.{i}.pool"]}, "{i}"),
    "decoder placeholder without decoders": ("merged", {"inputs": ["decoder_{D}.output"]}, "{D}"),
    "id without its block": ("encoder.{i}.pool", {"repeat": "none"}, "{i}"),
    "id without its decoder": ("decoder_{D}.central", {"decoders": False}, "{D}"),
    "nothing for block 0": ("encoder.{i}.pool", {"inputs": ["encoder.{i-1}.pool"]}, "first_inputs"),
    "block beyond the last": ("encoder.{i}.conv1", {"shape_torch": "B, F[i + 1]"}, "F[i + 1]"),
}


@pytest.mark.parametrize(("clause_id", "change", "named"), BROKEN.values(), ids=BROKEN)
def test_a_broken_clause_is_refused_by_name(stages, clause_id, change, named):
    _clause(stages, clause_id).update(change)
    with pytest.raises(SpecError) as caught:
        spec.parse_stages(stages)
    assert str(caught.value).startswith(f"stages.yaml: clause {clause_id}")
    assert named in str(caught.value)


def test_a_missing_field_is_refused_by_name(stages):
    del _clause(stages, "views")["equation"]
    with pytest.raises(SpecError, match=r"stages\.yaml: clause views: 'equation' is a required property"):
        spec.parse_stages(stages)


def test_a_duplicate_id_is_refused(stages):
    stages["stages"].append(copy.deepcopy(_clause(stages, "views")))
    with pytest.raises(SpecError, match=r"stages\.yaml: clause views is there 2 times"):
        spec.parse_stages(stages)


def test_a_judgement_may_not_take_the_id_of_another(stages):
    stages["judgements"].append(dict(stages["judgements"][0]))
    with pytest.raises(SpecError, match="is there 2 times"):
        spec.parse_stages(stages)


def test_two_clauses_may_not_make_one_stage(stages):
    clause = copy.deepcopy(_clause(stages, "object"))
    clause["id"] = "decoder_amp.output"
    stages["stages"].append(clause)
    with pytest.raises(SpecError, match=r"clause decoder_amp\.output: makes 'decoder_amp\.output'"):
        spec.parse_stages(stages)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"severity": "high"}, "severity"),
        ({"test": None}, "reason"),
        ({"test": "tests/test_other.py::test_it"}, "test_other"),
        ({"reason": "It has a test and a reason not to have one."}, "reason"),
        ({"recorded": {}}, "recorded"),
        ({"recorded": {"deep": {"er": 1}}}, "deep"),
    ],
)
def test_a_broken_defect_is_refused_by_name(defects, change, named):
    defects["defects"][2].update(change)
    with pytest.raises(SpecError, match=r"reference_defects\.yaml: clause REF-03") as caught:
        spec.parse_defects(defects)
    assert named in str(caught.value)


def test_a_duplicate_defect_is_refused(defects):
    defects["defects"].append(dict(defects["defects"][0]))
    with pytest.raises(SpecError, match="REF-01 is there 2 times"):
        spec.parse_defects(defects)


@pytest.mark.parametrize("content", [None, [], "text", {"stages": []}, {"stages": 3, "judgements": [], "branch": ""}])
def test_a_file_that_is_no_spec_is_refused(content):
    with pytest.raises(SpecError, match=r"^stages\.yaml: "):
        spec.parse_stages(content)


@pytest.mark.parametrize(
    ("expression", "shape"),
    [
        ("B", (3,)),
        ("B, N // 2**i, F[i]", (3, 32, 64)),
        ("B * (N - 60), F[i - 1] + 1", (12, 33)),
    ],
)
def test_shapes_are_integer_arithmetic(expression, shape):
    assert evaluate_shape(expression, LETTERS, "example") == shape


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "F.count(32)",
        "F.__class__",
        "B if N else 3",
        "[B for B in F]",
        "lambda: 3",
        "(B := 4)",
        "B / 2",
        "B % 2",
        "B << 2",
        "-B",
        "B < 4",
        "1.5",
        "True",
        "'4'",
        "B, *F",
        "F",
        "F[0:1]",
        "F[2]",
        "(B, N) * 2",
        "B, (N, N)",
        "2**2**9",
        "F[0 - 1]",
        "B[0]",
        "N // 0",
        "N**99",
        "2**(0 - 1)",
        "B, 0",
        "()",
        "",
        "B,, N",
        "B; N",
        "(" * 5000,
    ],
)
def test_shapes_are_nothing_but_arithmetic(expression):
    with pytest.raises(SpecError, match=r"^example: "):
        evaluate_shape(expression, LETTERS, "example")


def test_conditions_follow_boolean_algebra():
    for values in itertools.product((True, False), repeat=3):
        a, b, c = values
        flags = dict(zip(FLAGS, values, strict=True))
        found = evaluate_condition("not object_big and (probe_big or not pad_object)", flags, "example")
        assert found == (not a and (b or not c))


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "1",
        "'probe_big'",
        "object_big + probe_big",
        "object_big & probe_big",
        "object_big.real",
        "N",
        "True or N",
    ],
)
def test_conditions_are_nothing_but_settings(expression):
    with pytest.raises(SpecError, match=r"^example: "):
        evaluate_condition(expression, FLAGS, "example")


def test_a_stage_without_a_tap_and_a_tap_without_a_stage_are_named(stages):
    settings = NetworkSettings(N=64, gridsize=2)
    taps = [stage.id for stage in spec.load_stages().expand(settings)]
    assert missing_and_unexpected(taps, taps) == ()

    added = _clause(stages, "object") | {"id": "object_copy"}
    grown = spec.parse_stages(stages | {"stages": [*stages["stages"], added]})
    ids = [stage.id for stage in grown.expand(settings)]
    assert missing_and_unexpected(ids, taps) == ("stage object_copy has no tap",)

    kept = [clause for clause in stages["stages"] if clause["id"] != "object"]
    ids = [stage.id for stage in spec.parse_stages(stages | {"stages": kept}).expand(settings)]
    assert missing_and_unexpected(ids, taps) == ("tap object is no stage of the spec",)

    assert missing_and_unexpected(taps, [*taps, "views"]) == ("tap views is there twice",)


def test_an_unknown_clause_is_named():
    assert spec.load_stages().clause("merged").title
    with pytest.raises(SpecError, match="no clause 'MERGED'"):
        spec.load_stages().clause("MERGED")


def test_the_specs_of_a_wheel_come_before_those_of_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "ptycho_torch"
    monkeypatch.setattr(contract, "__file__", str(package / "contracts" / "contract.py"))
    with pytest.raises(SpecError, match="install ptycho-torch again"):
        contract.specs_dir()
    for folder in (tmp_path / "specs", package / "specs"):
        folder.mkdir(parents=True)
        (folder / contract.DATA_FILE).write_text("clauses: [")
        assert contract.specs_dir() == folder
    with pytest.raises(SpecError, match="is no YAML"):
        contract.read_yaml(contract.DATA_FILE)
    with pytest.raises(SpecError, match="cannot be read"):
        contract.read_yaml(spec.DEFECTS_FILE)


def test_stages_are_frozen():
    stage = spec.load_stages().expand(NetworkSettings())[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage.id = "other"

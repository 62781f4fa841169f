"""The specification as frozen values: stage clauses, judgements and the reference's defects.

``specs/stages.yaml`` and ``specs/reference_defects.yaml`` are read once and checked against their schemas. A
clause is a template; ``StageSpec.expand`` turns the clauses into the stages of one configuration.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jsonschema

from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.contracts.contract import SpecError, read_yaml, specs_dir

STAGES_FILE = "stages.yaml"
DEFECTS_FILE = "reference_defects.yaml"

NETWORK_INPUT = "input"
"""What the spec calls the network's input s_I·X, the one input that is no stage."""

DECODERS = ("amp", "phase")

Repeat = Literal["none", "encoder_block", "decoder_block"]
Shape = tuple[int, ...]

_NAMES = (ast.Name, ast.Load)
_ARITHMETIC = (*_NAMES, ast.Tuple, ast.Subscript, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Pow)
_LOGIC = (*_NAMES, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not)
_WORDS = MappingProxyType({int: "integers, names, + - * // **", bool: "settings, and, or, not"})
_LARGEST_EXPONENT = 16


@dataclasses.dataclass(frozen=True)
class Variant:
    """What differs from its clause in some configurations; None where nothing does."""

    when: str
    equation: str | None = None
    inputs: tuple[str, ...] | None = None
    activation: str | None = None
    branch: str | None = None
    torch: str | None = None
    keras: str | None = None


@dataclasses.dataclass(frozen=True)
class StageClause:
    """One clause of ``specs/stages.yaml``; ``specs/README.md`` explains the fields.

    Ids and inputs are templates: ``{D}`` is a decoder, ``{i}`` a block, ``{i-1}`` the block before,
    ``{last}`` the last block of the part that the template names.
    """

    id: str
    title: str
    text: str
    equation: str
    inputs: tuple[str, ...]
    shape_tensorflow: str
    shape_torch: str
    dtype: str
    layout: str
    torch: str
    keras: str
    repeat: Repeat = "none"
    decoders: bool = False
    when: str = "True"
    first_inputs: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    weights: tuple[str, ...] = ()
    activation: str = "none"
    branch: str = "none"

    def resolve(self, settings: NetworkSettings) -> StageClause | None:
        """Return the clause with the variant of these settings written in; None if they have no such stage.

        Raises:
            SpecError: a condition that cannot be read, or not exactly one variant that holds.
        """
        flags = _flags(settings)
        where = f"{STAGES_FILE}: clause {self.id}"
        if not evaluate_condition(self.when, flags, where):
            return None
        if not self.variants:
            return self
        holding = [variant for variant in self.variants if evaluate_condition(variant.when, flags, where)]
        if len(holding) != 1:
            raise SpecError(f"{where}: {len(holding)} variants hold for {flags}; exactly one must.")
        changes = {
            field.name: getattr(holding[0], field.name)
            for field in dataclasses.fields(Variant)
            if field.name != "when" and getattr(holding[0], field.name) is not None
        }
        return dataclasses.replace(self, variants=(), **changes)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of one configuration.

    Attributes:
        id: for example ``decoder_amp.0.conv1``.
        clause: the clause it comes from, with the variant of this configuration written in.
        inputs: ids of the stages it reads, or ``input``.
        settings: the configuration.
        block: i, or None outside blocks.
        decoder: ``amp``, ``phase``, or None outside decoders.
    """

    id: str
    clause: StageClause
    inputs: tuple[str, ...]
    settings: NetworkSettings
    block: int | None = None
    decoder: str | None = None

    @property
    def layout(self) -> str:
        """Name of the axis orders on both sides, a key of ``ptycho_tf_bridge.layout.LAYOUTS``."""
        return self.clause.layout

    @property
    def dtype(self) -> str:
        """``real`` or ``complex``."""
        return self.clause.dtype

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of its weights, for example ``encoder.0.conv1.kernel``."""
        return tuple(f"{self.id}.{weight}" for weight in self.clause.weights)

    @property
    def activation(self) -> str:
        """``none``, ``relu``, ``swish``, ``sigmoid``, ``softplus`` or ``pi_tanh``."""
        if self.clause.activation != "head":
            return self.clause.activation
        return self.settings.amp_activation if self.decoder == "amp" else "pi_tanh"

    @property
    def branch(self) -> str:
        """Which kink it has: ``none``, ``relu`` or ``pool``."""
        if self.clause.branch != "head":
            return self.clause.branch
        return "relu" if self.activation == "relu" else "none"

    def shape_tensorflow(self, batch: int, modes: int = 1) -> Shape:
        """Shape of the output on the TensorFlow side, for B groups and M probe modes."""
        return self._shape(self.clause.shape_tensorflow, batch, modes)

    def shape_torch(self, batch: int, modes: int = 1) -> Shape:
        """Shape of the output on the PyTorch side, for B groups and M probe modes."""
        return self._shape(self.clause.shape_torch, batch, modes)

    def _shape(self, expression: str, batch: int, modes: int) -> Shape:
        settings = self.settings
        names: dict[str, int | tuple[int, ...]] = {
            "B": batch,
            "C": settings.C,
            "N": settings.N,
            "P": settings.canvas_px,
            "M": modes,
            "K": settings.amplitude_channels if self.decoder == "amp" else settings.phase_channels,
            "m": settings.outer_width,
            "E": len(settings.encoder_widths),
            "F": settings.encoder_widths,
            "G": settings.decoder_widths,
        }
        if self.block is not None:
            names["i"] = self.block
        return evaluate_shape(expression, names, f"{STAGES_FILE}: clause {self.clause.id}")


@dataclasses.dataclass(frozen=True)
class JudgementClause:
    """One clause about how parity is judged."""

    id: str
    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """Everything that ``specs/stages.yaml`` says.

    Attributes:
        stages: clauses in the order of the forward pass.
        judgements: clauses of the judge.
        branch: how derivatives at kinks are compared.
    """

    stages: tuple[StageClause, ...]
    judgements: tuple[JudgementClause, ...]
    branch: str

    def clause(self, clause_id: str) -> StageClause | JudgementClause:
        """Return the clause of this id.

        Raises:
            SpecError: there is none.
        """
        clauses: tuple[StageClause | JudgementClause, ...] = self.stages + self.judgements
        for clause in clauses:
            if clause.id == clause_id:
                return clause
        raise SpecError(f"{STAGES_FILE}: no clause {clause_id!r}.")

    def expand(self, settings: NetworkSettings) -> tuple[Stage, ...]:
        """Return the stages of one configuration, each behind the stages that it reads.

        Raises:
            SpecError: a clause that does not fit these settings, or reads a stage that is not before it.

        >>> [stage.id for stage in load_stages().expand(NetworkSettings(N=64))][:3]
        ['normalized_input', 'encoder.0.conv1', 'encoder.0.conv2']
        """
        stages: list[Stage] = []
        known = {NETWORK_INPUT}
        for stage in _expansion(self.stages, settings):
            where = f"{STAGES_FILE}: clause {stage.clause.id}"
            for read in stage.inputs:
                if read not in known:
                    flags = _flags(settings)
                    raise SpecError(f"{where}: reads {read!r}, which nothing before it makes for {flags}.")
            if stage.id in known:
                raise SpecError(f"{where}: makes {stage.id!r}, which an earlier clause makes already.")
            known.add(stage.id)
            stages.append(stage)
        return tuple(stages)


@dataclasses.dataclass(frozen=True)
class Defect:
    """One defect of the reference.

    Attributes:
        id: ``REF-01`` and so on.
        title: in a few words.
        text: what the reference does.
        recorded: what was seen on it.
        ours: what this project does.
        test: pytest node that pins it, or None.
        reason: why there is no test; empty where there is one.
    """

    id: str
    title: str
    text: str
    recorded: Mapping[str, Any]
    ours: str
    test: str | None
    reason: str = ""


def _flags(settings: NetworkSettings) -> dict[str, bool]:
    names = ("object_big", "probe_big", "pad_object")
    return {name: getattr(settings, name) for name in names}


def _expansion(clauses: tuple[StageClause, ...], settings: NetworkSettings) -> Iterator[Stage]:
    """Repeat neighbouring clauses of decoders decoder by decoder, and those of blocks block by block."""
    for decoders, part in itertools.groupby(clauses, key=lambda clause: clause.decoders):
        part_clauses = tuple(part)
        for decoder in DECODERS if decoders else (None,):
            for repeat, group in itertools.groupby(part_clauses, key=lambda clause: clause.repeat):
                group_clauses = tuple(group)
                for block in _blocks(repeat, settings):
                    for clause in group_clauses:
                        resolved = clause.resolve(settings)
                        if resolved is not None:
                            yield _stage(resolved, settings, block, decoder)


def _blocks(repeat: Repeat, settings: NetworkSettings) -> tuple[int | None, ...]:
    if repeat == "none":
        return (None,)
    widths = settings.encoder_widths if repeat == "encoder_block" else settings.decoder_widths
    return tuple(range(len(widths)))


def _stage(clause: StageClause, settings: NetworkSettings, block: int | None, decoder: str | None) -> Stage:
    def fill(template: str) -> str:
        last = settings.encoder_widths if template.startswith("encoder") else settings.decoder_widths
        values: dict[str, object] = {"{last}": len(last) - 1}
        if decoder is not None:
            values["{D}"] = decoder
        if block is not None:
            values |= {"{i}": block, "{i-1}": block - 1}
        for placeholder, value in values.items():
            template = template.replace(placeholder, str(value))
        if "{" in template:
            raise SpecError(f"{STAGES_FILE}: clause {clause.id}: nothing fills all of {template!r}.")
        return template

    inputs = clause.first_inputs if block == 0 and clause.first_inputs else clause.inputs
    return Stage(fill(clause.id), clause, tuple(map(fill, inputs)), settings, block, decoder)


def evaluate_shape(expression: str, names: Mapping[str, int | tuple[int, ...]], where: str) -> Shape:
    """Evaluate comma-separated integer arithmetic: + − * // **, brackets, names, and ``name[index]``.

    Raises:
        SpecError: anything else, or an axis shorter than 1.

    >>> evaluate_shape("B, N // 2**i, F[i]", {"B": 3, "N": 64, "i": 1, "F": (32, 64)}, "example")
    (3, 32, 64)
    """
    where = f"{where}: shape {expression!r}"
    # A mapping has no index from the end.
    letters = {name: dict(enumerate(each)) if isinstance(each, tuple) else each for name, each in names.items()}
    found = _evaluate(expression, letters, int, _ARITHMETIC, where)
    shape = found if isinstance(found, tuple) else (found,)
    if any(type(axis) is not int for axis in shape):
        raise SpecError(f"{where}: an axis is no whole number; write name[i] where a name is a list of numbers.")
    if min(shape, default=0) < 1:
        raise SpecError(f"{where} has an axis shorter than 1: {shape}.")
    return shape


def evaluate_condition(expression: str, flags: Mapping[str, bool], where: str) -> bool:
    """Evaluate settings joined by ``and``, ``or``, ``not`` and brackets.

    Raises:
        SpecError: anything else.

    >>> evaluate_condition("probe_big or not pad_object", {"probe_big": False, "pad_object": True}, "example")
    False
    """
    return bool(_evaluate(expression, flags, bool, _LOGIC, f"{where}: condition {expression!r}"))


def _evaluate(
    expression: str | ast.expr, names: Mapping[str, Any], kind: type, allowed: tuple[type[ast.AST], ...], where: str
) -> Any:
    """Evaluate what is made of names, constants of one kind and some nodes of a syntax tree, and of nothing else."""
    try:
        tree = ast.parse(expression, mode="eval").body if isinstance(expression, str) else expression
        for node in ast.walk(tree):
            known = type(node.value) is kind if isinstance(node, ast.Constant) else isinstance(node, allowed)
            # Several axes are no number to count with.
            if not known or (isinstance(node, ast.Tuple) and node is not tree):
                raise SpecError(f"{where}: only {_WORDS[kind]} and brackets are allowed.")
            if isinstance(node, ast.Name) and node.id not in names:
                raise SpecError(f"{where}: {node.id!r} is none of {', '.join(names)}.")
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
                exponent = _evaluate(node.right, names, kind, allowed, where)
                # Bounds keep a typing error from asking for a number with millions of digits.
                if not 0 <= exponent <= _LARGEST_EXPONENT:
                    raise SpecError(f"{where}: exponent {exponent}; expected 0 to {_LARGEST_EXPONENT}.")
        return eval(compile(ast.Expression(tree), where, "eval"), {"__builtins__": {}}, names)
    except SpecError:
        raise
    except (ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as err:
        raise SpecError(f"{where}: {type(err).__name__}: {err}.") from err


def check_schema(content: Any, name: str) -> None:
    """Check the content of a file of the specs folder against its JSON Schema.

    Raises:
        SpecError: naming the file, the clause and the field.
    """
    path = specs_dir() / "schema" / f"{Path(name).stem}.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    err = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(content))
    if err is None:
        return
    place = list(err.absolute_path)
    where = ".".join(map(str, place)) or "the file"
    if len(place) >= 2 and isinstance(content[place[0]][place[1]], dict):
        clause = content[place[0]][place[1]].get("id", f"number {place[1]} of {place[0]}")
        where = " ".join([f"clause {clause}", *map(str, place[2:])])
    raise SpecError(f"{name}: {where}: {err.message}")


def parse_stages(content: Any) -> StageSpec:
    """Make the spec from the content of ``stages.yaml`` and check that it holds together.

    Raises:
        SpecError: naming the clause that breaks the schema, repeats an id, or does not fit some settings.
    """
    check_schema(content, STAGES_FILE)
    stages = tuple(_stage_clause(entry) for entry in content["stages"])
    judgements = tuple(JudgementClause(**entry) for entry in content["judgements"])
    _check_unique([clause["id"] for clause in content["stages"] + content["judgements"]], STAGES_FILE)
    spec = StageSpec(stages, judgements, content["branch"])
    for clause in stages:
        _check_placeholders(clause)
    for object_big, probe_big, pad_object in itertools.product((True, False), repeat=3):
        settings = NetworkSettings(object_big=object_big, probe_big=probe_big, pad_object=pad_object)
        for stage in spec.expand(settings):
            stage.shape_tensorflow(1)
            stage.shape_torch(1)
    return spec


def _stage_clause(entry: Mapping[str, Any]) -> StageClause:
    def frozen(fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

    variants = tuple(Variant(**frozen(variant)) for variant in entry.get("variants", ()))
    return StageClause(**(frozen(entry) | {"variants": variants}))


def _check_unique(ids: list[str], name: str) -> None:
    for clause_id in ids:
        if ids.count(clause_id) > 1:
            raise SpecError(f"{name}: clause {clause_id} is there {ids.count(clause_id)} times.")


def _check_placeholders(clause: StageClause) -> None:
    where = f"{STAGES_FILE}: clause {clause.id}"
    if ("{D}" in clause.id) != clause.decoders:
        raise SpecError(f"{where}: an id has {{D}} exactly where decoders is true.")
    if ("{i}" in clause.id) != (clause.repeat != "none"):
        raise SpecError(f"{where}: an id has {{i}} exactly where repeat names a block.")
    reads_before = any("{i-1}" in template for template in clause.inputs)
    if reads_before != bool(clause.first_inputs):
        raise SpecError(f"{where}: first_inputs is there exactly where inputs names {{i-1}}.")


def parse_defects(content: Any) -> tuple[Defect, ...]:
    """Make the defects from the content of ``reference_defects.yaml``.

    Raises:
        SpecError: naming the clause that breaks the schema or repeats an id.
    """
    check_schema(content, DEFECTS_FILE)
    _check_unique([entry["id"] for entry in content["defects"]], DEFECTS_FILE)
    return tuple(
        Defect(**(entry | {"recorded": MappingProxyType(dict(entry["recorded"]))})) for entry in content["defects"]
    )


@functools.cache
def load_stages() -> StageSpec:
    """Read ``specs/stages.yaml`` once.

    Raises:
        SpecError: as ``read_yaml`` and ``parse_stages``.
    """
    return parse_stages(read_yaml(STAGES_FILE))


@functools.cache
def load_defects() -> tuple[Defect, ...]:
    """Read ``specs/reference_defects.yaml`` once.

    Raises:
        SpecError: as ``read_yaml`` and ``parse_defects``.
    """
    return parse_defects(read_yaml(DEFECTS_FILE))


def missing_and_unexpected(spec_ids: Iterable[str], tap_ids: Iterable[str]) -> tuple[str, ...]:
    """Say which stages of the spec a side does not tap, and which of its taps the spec does not know.

    >>> missing_and_unexpected(("views", "object"), ("views", "canvas"))
    ('stage object has no tap', 'tap canvas is no stage of the spec')
    """
    spec, taps = tuple(spec_ids), tuple(tap_ids)
    return (
        *(f"stage {stage} has no tap" for stage in spec if stage not in taps),
        *(f"tap {tap} is no stage of the spec" for tap in taps if tap not in spec),
        *(f"tap {tap} is there twice" for tap in dict.fromkeys(taps) if taps.count(tap) > 1),
    )

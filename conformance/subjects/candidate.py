"""Any candidate before the judge: how it is found, what it has to give, and where its code is.

``docs/judge_your_port.md`` explains the protocol to others. The network of this package comes through the same door.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from conformance.cases.case import NOT_GIVEN, Case, ForcedRun, FreeRun
from conformance.errors import CandidateError
from conformance.judge.measure import Key
from conformance.provenance.digest import file_digest
from conformance.spec.loader import load_stages
from conformance.subjects.torch import TorchSubject
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.losses import total_loss
from ptycho_torch.model import PtychoNet


class Candidate(Protocol):
    """What can be judged: an object with ``free``, and ``forced(case, stages, cotangents)`` if it likes."""

    def free(self, case: Case) -> FreeRun:
        """Run the network of a case end to end on the case's input; arrays as ``FreeRun`` has them, channels-last."""


Factory = Callable[[str, str], Candidate]
"""(device, dtype) → a candidate; the dtype is ``float32`` or ``float64``."""


@dataclass(frozen=True)
class Origin:
    """Where a candidate comes from, for reports.

    Attributes:
        name: ``MODULE:FACTORY``.
        file: of the module; empty where it has none.
        sha256: of the file; empty where there is none.
    """

    name: str
    file: str
    sha256: str


def load_factory(name: str, folder: Path) -> tuple[Factory, Origin]:
    """Import the factory of a candidate; modules are searched in ``folder`` last.

    Raises:
        CandidateError: there is no such module or factory, or importing it fails.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute.isidentifier():
        raise CandidateError(f"found {name!r}; expected MODULE:FACTORY, for example my_port:Port.")
    # Last, so that a checkout of another project in this folder hides no package of this one.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        module = importlib.import_module(module_name)
    except Exception as err:
        why = f"{type(err).__name__}: {err}".splitlines()[0]
        raise CandidateError(
            f"{name}: the module {module_name} cannot be imported from {folder} ({why}); run pytest in its folder, or "
            "put that on PYTHONPATH."
        ) from err
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise CandidateError(f"{name}: {module.__file__} has no class or function {attribute}; define it there.")
    file = getattr(module, "__file__", None) or ""
    return factory, Origin(name, file, file_digest(Path(file)) if file else "")


@dataclass(frozen=True)
class CandidateSubject:
    """A candidate as the judge sees it: names are checked, arrays are NumPy's, and whatever it raises is a verdict.

    Attributes:
        factory: of who is judged.
        device: torch device name.
        dtype: ``float32`` or ``float64``.
    """

    factory: Factory
    device: str
    dtype: str

    @property
    def row(self) -> str:
        """How reports call dtype and way of running."""
        return self.dtype

    @property
    def products(self) -> str:
        """What the convolutions run in; a candidate of others gets no wider budget."""
        return self.dtype

    @property
    def is_ours(self) -> bool:
        """Whether it is this package's network, of which training is judged as well."""
        return self.factory is TorchSubject

    @functools.cached_property
    def _candidate(self) -> Candidate:
        return self.factory(self.device, self.dtype)

    def shows(self, key: Key) -> bool:
        """Return True: what a candidate does not offer, its runs say."""
        return True

    def free(self, case: Case) -> FreeRun:
        """Run end to end."""
        return _read(lambda: self._candidate.free(case), FreeRun, case)

    def forced(
        self, case: Case, truth_stages: Mapping[str, np.ndarray], truth_cotangents: Mapping[str, np.ndarray]
    ) -> ForcedRun:
        """Run stage by stage on the truth's values, where the candidate can."""

        def ask() -> ForcedRun:
            forced = getattr(self._candidate, "forced", None)
            return ForcedRun() if forced is None else forced(case, truth_stages, truth_cotangents)

        return _read(ask, ForcedRun, case)


_Run = TypeVar("_Run", FreeRun, ForcedRun)


def _read(ask: Callable[[], Any], kind: type[_Run], case: Case) -> _Run:
    """Ask a candidate for a run, and check and convert what it gives.

    Raises:
        CandidateError: it raises anything, gives something else, or names what the case does not have.
    """
    try:
        run = ask()
        if not isinstance(run, kind):
            raise CandidateError(f"found a {type(run).__name__}; expected a {kind.__name__}, of conformance.cases.case")
        stages: list[str] = [stage.id for stage in load_stages().expand(case.settings)]
        known = {"stages": stages, "cotangents": stages, "pulled": [*stages, "loss"], "gradients": list(case.weights)}
        read: dict[str, Any] = {}
        for part, names in known.items():
            given: Mapping[str, Any] = getattr(run, part, NOT_GIVEN)
            if given is not NOT_GIVEN:
                _refuse_strangers(part, given, names)
                read[part] = {name: _arrays(each) for name, each in given.items()}
        converted: _Run = dataclasses.replace(run, **read)
        return converted
    except CandidateError:
        raise
    except Exception as err:
        raise CandidateError(_told(err)) from err


_FRAMES = 10
"""How many calls are shown, the innermost ones."""


def _told(err: Exception) -> str:
    """Say what was raised and where, as far as it is the candidate's own code; the lines after the first show it."""
    passing = (__file__, functools.__file__)
    frames = [each for each in traceback.extract_tb(err.__traceback__) if each.filename not in passing]
    own = ([each for each in frames if "site-packages" not in each.filename] or frames)[-_FRAMES:]
    what, *more = f"{type(err).__name__}: {err}".splitlines()
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno}, in {own[-1].name})" if own else ""
    return "\n".join([what + where, *more, *"".join(traceback.format_list(own)).splitlines()])


def _arrays(value: Any) -> Any:
    return {name: np.asarray(each) for name, each in value.items()} if isinstance(value, Mapping) else np.asarray(value)


def _refuse_strangers(part: str, given: Collection[str], names: Collection[str]) -> None:
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; expected {', '.join(names)}"
            raise CandidateError(f"{part}: found {name!r}, which this case does not have{hint}")


# ----------------------------------------------------------------------------------------------------- where code is


def located(factory: Factory, stage: str, settings: NetworkSettings) -> tuple[Path, int]:
    """Return file and line that compute a stage, as far as the source says so: else those of the candidate.

    In a candidate of others it is the line with the text that is most like the id of the stage, f-strings included.
    """
    code: Any = factory
    if factory is TorchSubject:
        network = PtychoNet(settings)
        code = type(network.get_submodule(stage)) if stage in network.stage_ids() else inspect.unwrap(total_loss)
    path, line = Path(str(inspect.getsourcefile(code))), inspect.getsourcelines(code)[1]
    if factory is not TorchSubject:
        line = max(_naming(path.read_text(encoding="utf-8"), stage), default=(0, line))[1]
    return path, line


def _naming(source: str, stage: str) -> Iterator[tuple[int, int]]:
    """Yield (letters that agree, line) of each text that can be the id of a stage."""
    for node in ast.walk(ast.parse(source)):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [str(each.value) if isinstance(each, ast.Constant) else None for each in parts]
        pattern = "".join(".+" if text is None else re.escape(text) for text in texts)
        if any(texts) and re.fullmatch(pattern, stage):
            yield sum(map(len, filter(None, texts))), getattr(node, "lineno", 1)

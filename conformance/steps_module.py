"""The module that is trained, before its first update: what data decide of it, and what it says about a batch."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.small_runs import COMMON, GRID, PATTERNS, PROBE_SCALE, SIDE_PX, SmallScans, normalised_modes
from conformance.step import Outcome, Step, StepBench
from conformance.steps_scans import FLOAT32, Tables
from ptycho_torch.config_params import Settings

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
    from ptycho_torch.train import PtychoPINN


@dataclasses.dataclass(frozen=True)
class _Known:
    """What NumPy knows of the small scans.

    Attributes:
        nphotons: mean counts of a pattern of a group.
        step_px: median distance to the nearest position.
        reach_px: (L,) largest component of an offset of each group.
        positions_sum_px: of all x and y.
    """

    nphotons: float
    step_px: float
    reach_px: np.ndarray
    positions_sum_px: float

    @classmethod
    def of(cls, scans: SmallScans, dataset: PtychoDataset) -> _Known:
        """Compute it from the scans, and from the groups and offsets of their map."""
        table = Tables.of(dataset)
        counts = np.square(table.amplitude.astype(np.float64)).sum(axis=(1, 2))
        steps = []
        for scan in scans.scans.values():
            positions = np.stack([scan["xcoords"], scan["ycoords"]], axis=1)
            distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
            np.fill_diagonal(distance, np.inf)
            steps.append(np.median(distance.min(axis=1)))
        total = sum(float(scan[axis].sum()) for scan in scans.scans.values() for axis in ("xcoords", "ycoords"))
        reach = np.abs(table.coords).max(axis=(1, 2, 3))
        return cls(float(counts[table.members].mean()), float(np.median(steps)), reach, total)

    def module(
        self,
        *,
        offset: int | None = None,
        jitter: int | None = None,
        derived_by: int | None = None,
        intensity_scale: float | None = None,
    ) -> dict[str, Any]:
        """Return what a module of these data has; ``derived_by`` is the offset that decides a jitter not given."""
        offset = round(self.step_px) if offset is None else offset
        spread = (GRID - 1) * (offset if derived_by is None else derived_by)
        if jitter is None:
            jitter = max(2 * math.ceil(self.reach_px.max()) - spread, 0)
            jitter += (spread + jitter) % 2
        padding = ((GRID - 1) * offset + jitter) // 2
        scale = math.sqrt(self.nphotons) / (SIDE_PX / 2) if intensity_scale is None else intensity_scale
        return {
            "N": SIDE_PX, "gridsize": GRID, "offset": offset, "max_position_jitter": jitter, "intensity_scale": scale,
            "clipped_groups": int((self.reach_px > padding).sum()), "nphotons": self.nphotons,
            "step_px": self.step_px, "reach_px": float(self.reach_px.max()), "groups": len(self.reach_px),
            "positions_sum_px": self.positions_sum_px,
        }  # fmt: skip


FIELDS = ("N", "gridsize", "offset", "max_position_jitter", "intensity_scale")
"""Of the settings of a network, those that data decide."""


def _of_module(module: PtychoPINN) -> dict[str, Any]:
    network = dataclasses.asdict(module.network.settings)
    return {**module.statistics, **{name: network[name] for name in FIELDS}}


def _of_data(bench: StepBench) -> Outcome:
    """Make modules of datasets with one probe and with several, with what data decide given and not, or no data."""
    from ptycho_torch.errors import ConfigError
    from ptycho_torch.train import PtychoPINN

    scans = bench.once(SmallScans)
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    wrong: dict[str, dict[str, np.ndarray]] = {}
    known = _Known.of(scans, scans.dataset(Settings().override(COMMON), one_probe=False))
    little = 2 - round(known.step_px) % 2
    cases: dict[str, tuple[bool, dict[str, Any]]] = {
        "own probes": (False, {}),
        "own probes, offset given": (False, {"offset": round(known.step_px) + 2}),
        "own probes, jitter given": (False, {"jitter": little}),
        "one probe, all given": (True, {"offset": 3, "jitter": 5, "intensity_scale": 2.5}),
    }
    for case, (one_probe, given) in cases.items():
        chosen = {"max_position_jitter" if name == "jitter" else name: value for name, value in given.items()}
        settings = Settings().override({**COMMON, **chosen})
        module = PtychoPINN.for_dataset(scans.dataset(settings, one_probe=one_probe), settings)
        probes = {"probe_modes": 1 + one_probe, "one_probe": one_probe, "patterns": sum(PATTERNS)}
        right = known.module(**given) | probes | {"scans": list(scans.scans)}
        said = _of_module(module)
        expected |= {f"{case}: {name}": np.array(each) for name, each in right.items()}
        found |= {f"{case}: {name}": np.array(said[name]) for name in right}
        modes = scans.modes if one_probe else next(iter(scans.scans.values()))["probeGuess"][None]
        expected[f"{case}: probe"] = normalised_modes(modes, PROBE_SCALE)
        found[f"{case}: probe"] = module.network.probe.detach().numpy()
        for mistake, other in (
            ("jitter of another offset", known.module(**given, derived_by=round(known.step_px))),
            ("given offset ignored", known.module(**given | {"offset": None})),
            ("given jitter ignored", known.module(**given | {"jitter": None})),
            ("one probe for all scans", {"one_probe": True}),
            ("a probe for each scan, whatever was given", {"one_probe": False}),
        ):
            gives = {f"{case}: {name}": np.array(each) for name, each in (right | other).items()}
            wrong.setdefault(mistake, {}).update(gives)
    alone, mistakes = _without_data()
    expected |= {name: each[0] for name, each in alone.items()}
    found |= {name: each[1] for name, each in alone.items()}
    try:
        trained = Settings().override({**COMMON, "probe_trainable": True})
        PtychoPINN.for_dataset(scans.dataset(trained, one_probe=False), trained)
        refused = False
    except ConfigError:
        refused = True
    expected["one trained probe for several refused"] = np.array(True)
    found["one trained probe for several refused"] = np.array(refused)
    return Outcome(expected, found, FLOAT32, [*(Hypothesis(name, gives) for name, gives in wrong.items()), *mistakes])


def _without_data() -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[Hypothesis]]:
    """Return what modules without a dataset should have and have, and mistakes: the reference's canvas is theirs."""
    from ptycho_torch.train import PtychoPINN

    judged: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    exchanged: dict[str, np.ndarray] = {}
    other: dict[str, np.ndarray] = {}
    cases: dict[str, dict[str, Any]] = {
        "nothing given": {"nphotons": 5e3},
        "offset given": {"nphotons": 5e3, "offset": 6},
        "jitter given": {"nphotons": 5e3, "max_position_jitter": 16},
        "scale given": {"intensity_scale": 7.5, "gridsize": 1},
    }
    for case, chosen in cases.items():
        module = PtychoPINN(Settings().override({**COMMON, **chosen}))
        right = {
            "N": SIDE_PX,
            "gridsize": GRID,
            "offset": 4,
            "max_position_jitter": 10,
            "intensity_scale": math.sqrt(5e3) / (SIDE_PX / 2),
            **{name: value for name, value in chosen.items() if name != "nphotons"},
        }
        said = _of_module(module)
        for name in FIELDS:
            judged[f"without data, {case}: {name}"] = np.array(right[name]), np.array(said[name])
        exchanged[f"without data, {case}: max_position_jitter"] = np.array(right["offset"])
        other[f"without data, {case}: offset"] = np.array(right["max_position_jitter"])
    mistakes = [Hypothesis("offset for the jitter", exchanged), Hypothesis("jitter for the offset", other)]
    return judged, mistakes


def _module_called(bench: StepBench) -> Outcome:
    """Call a module with a batch of both scans: each pattern is lit by the probe of its scan."""
    import torch

    from ptycho_torch.train import PtychoPINN

    scans = bench.once(SmallScans)
    settings = Settings().override(COMMON)
    dataset = scans.dataset(settings, one_probe=False)
    module = PtychoPINN.for_dataset(dataset, settings)
    batch = dataset[[len(dataset) - 1, 1]]
    probes = [normalised_modes(scan["probeGuess"][None], PROBE_SCALE) for scan in scans.scans.values()]
    scaled = torch.from_numpy(batch.images.double().numpy() * module.network.settings.intensity_scale)
    lit = {
        "own": np.stack([probes[1], probes[0]]),
        "first": np.stack([probes[0], probes[0]]),
        "other": np.stack([probes[0], probes[1]]),
        "raw": np.stack([list(scans.scans.values())[number]["probeGuess"][None] for number in (1, 0)]),
    }
    with torch.no_grad():
        predictions = {
            name: module.network(scaled, batch.coords.double(), torch.from_numpy(np.repeat(each[:, None], GRID**2, 1)))
            for name, each in lit.items()
        }
        found = {"with the batch's probe": module(*batch), "without a probe": module(batch.images, batch.coords)}
        module.predict = True
        found["objects"] = module(*batch)
        found["objects without a probe"] = module(batch.images, batch.coords)

    def given(with_probe: str, without: str = "first") -> dict[str, np.ndarray]:
        own = predictions["own"].object.numpy()
        return {
            "with the batch's probe": predictions[with_probe].amplitude.numpy(),
            "without a probe": predictions[without].amplitude.numpy(),
            "objects": own,
            "objects without a probe": own,
        }

    mistakes = [
        Hypothesis("the network's probe for that of the batch", given("first")),
        Hypothesis("probe of another scan", given("other")),
        Hypothesis("probe not normalised", given("raw")),
    ]
    return Outcome(given("own"), {name: each.numpy() for name, each in found.items()}, FLOAT32, mistakes)


MODULE: tuple[Step, ...] = (
    Step("optimiser.of_data", ("RUN-01", "PREP-02"), _of_data, ("lightning", "tensordict")),
    Step("optimiser.module", ("RUN-01",), _module_called, ("lightning", "tensordict")),
)

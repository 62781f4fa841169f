"""Batches as training takes them: whole epochs, in order or shuffled, split and resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.step import Outcome, Step, StepBench
from conformance.steps_scans import FLOAT32, SEED, C, MappedScans, Tables
from ptycho_torch.config_params import TrainingSettings

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset


def _epoch(bench: StepBench) -> Outcome:
    """Take whole epochs of the shuffled loader, and go on with one that was broken off."""
    from ptycho_torch.dset_loader_pt_mmap import GroupSampler, TensorDictDataLoader

    size, dataset = 5, bench.once(MappedScans).dataset()
    training, validation = dataset.validation_split()

    def loader(seed: int = 5) -> TensorDictDataLoader:
        return TensorDictDataLoader(dataset, size, groups=training, shuffle=True, seed=seed)

    ours, again, other = loader(), loader(), loader(seed=6)
    epochs = [list(ours) for _ in range(2)]
    count = len(dataset)
    orders = [_order(epoch) for epoch in epochs]
    lengths = np.array([len(batch.groups) for batch in epochs[0]])
    kept = int(np.floor(0.95 * count))
    full, rest = divmod(kept, size)
    broken = iter(again)
    before = _order([next(broken) for _ in range(3)])
    resumed = loader()
    resumed.load_state_dict(again.state_dict())
    # Of an odd number of groups, two processes take one twice: none of them waits for the other.
    odd = training[: kept - kept % 6 + 3]
    alone = np.concatenate([each.numpy() for each in GroupSampler(odd, 3, shuffle=True, seed=5)])
    parts = [GroupSampler(odd, 3, shuffle=True, seed=5, rank=rank, world_size=2) for rank in (0, 1)]
    pairs = [np.concatenate(pair) for pair in zip(*([each.numpy() for each in part] for part in parts), strict=True)]
    many = [GroupSampler(training[:3], 1, shuffle=True, seed=5, rank=rank, world_size=8) for rank in range(8)]
    few = np.concatenate([each.numpy() for each in GroupSampler(training[:3], 3, shuffle=True, seed=5)])
    expected = {
        "validation": np.arange(kept, count),
        "every training group once an epoch": np.arange(kept),
        "lengths of batches": np.array([size] * full + ([rest] if rest else [])),
        "another order than the map's": np.array(True),
        "another order each epoch": np.array(True),
        "another order with another seed": np.array(True),
        "an epoch that was broken off goes on": orders[0],
        "groups of two processes": np.append(alone, alone[0]),
        "groups of more processes than groups": np.resize(few, 8),
    }
    given = {
        "validation": validation.numpy(),
        "every training group once an epoch": np.sort(orders[0]),
        "lengths of batches": lengths,
        "another order than the map's": np.array(not np.array_equal(orders[0], np.sort(orders[0]))),
        "another order each epoch": np.array(not np.array_equal(orders[0], orders[1])),
        "another order with another seed": np.array(not np.array_equal(orders[0], _order(other))),
        "an epoch that was broken off goes on": np.concatenate([before, _order(resumed)]),
        "groups of two processes": np.concatenate(pairs),
        "groups of more processes than groups": np.concatenate([each.numpy() for part in many for each in part]),
    }
    mistakes = [
        Hypothesis("validation groups taken from the front", {"validation": np.arange(count - kept)}),
        Hypothesis(
            "the last, smaller batch left out",
            {"lengths of batches": np.array([size] * full), "every training group once an epoch": np.sort(orders[0])},
        ),
        Hypothesis(
            "the last batch of several processes filled up with itself",
            {"groups of two processes": np.append(alone, alone[len(alone) // 6 * 6])},
        ),
        Hypothesis("the same order each epoch", {"another order each epoch": np.array(False)}),
        Hypothesis("the same order with every seed", {"another order with another seed": np.array(False)}),
        NEVER_SHUFFLED,
        Hypothesis(
            "an epoch that was broken off begins again",
            {"an epoch that was broken off goes on": np.concatenate([before, orders[0]])},
        ),
        Hypothesis(
            "an epoch that was broken off goes on one batch too late",
            {"an epoch that was broken off goes on": np.concatenate([before, orders[0][4 * size :]])},
        ),
        Hypothesis(
            "an epoch that was broken off goes on one batch too early",
            {"an epoch that was broken off goes on": np.concatenate([before, orders[0][2 * size :]])},
        ),
    ]
    return Outcome(expected, given, 0.0, mistakes)


NEVER_SHUFFLED = Hypothesis(
    "training groups not shuffled",
    {
        name: np.array(False)
        for name in (
            "another order than the map's",
            "another order each epoch",
            "another order with another seed",
        )
    },
)


def _order(batches: Iterable[PtychoBatch]) -> np.ndarray:
    """Return the numbers of the groups in the order in which batches have them."""
    return np.concatenate([batch.groups.numpy() for batch in batches])


Parts = dict[str, np.ndarray]


def _streamed(dataset: PtychoDataset, workers: int) -> tuple[Parts, Parts, dict[str, Parts]]:
    """Return what an epoch of a loader should give, what it gave, and what it would give by each mistake."""
    from ptycho_torch.dset_loader_pt_mmap import TensorDictDataLoader

    size, table = 5, Tables.of(dataset)
    # All batches of an epoch are held: none may be in memory that another was given.
    loader = TensorDictDataLoader(dataset, size, shuffle=True, seed=SEED, num_workers=workers)
    batches, groups = list(loader), np.concatenate([each.numpy() for each in loader.batch_sampler.batches(0)])
    scan, rows, coords = table.experiment_id[groups], table.members[groups], table.coords[groups]
    scale = table.scale[scan].astype(np.float64)
    factor, raw = scale[:, None, None, None], table.amplitude[rows].astype(np.float64)
    images = raw * factor

    def probe_of(scans: np.ndarray) -> np.ndarray:
        modes = np.repeat(table.probe[scans][:, None], C, axis=1)  # (B, C, modes, N, N)
        return modes[:, :, 0] if modes.shape[2] == 1 else modes

    probe = probe_of(scan)
    right = {"images": images, "coords": coords, "probe": probe, "scale": scale}
    # Training takes a batch apart in the same way.
    unpacked = zip(right, zip(*batches, strict=True), strict=True)
    found = {part: np.concatenate([each.numpy() for each in those]) for part, those in unpacked}
    right |= {"groups": groups, "patterns": rows, "good pixels": table.good_pixels[scan][:, None]}
    found["groups"] = _order(batches)
    found["patterns"] = np.concatenate([batch.indices.numpy() for batch in batches]).astype(np.int64)
    found["good pixels"] = np.concatenate([np.asarray(batch.good_pixels) for batch in batches])
    full = len(groups) // size * size
    used_again = np.concatenate([np.tile(images[full - size : full], (full // size, 1, 1, 1)), images[full:]])
    wrong = {
        "not normalised": {"images": raw},
        "divided in place of multiplied": {"images": raw / factor},
        "normalised twice": {"images": images * factor},
        "scale of another scan": {"images": raw * table.scale[0]},
        "memory of a batch used again while it is held": {"images": used_again},
        "channel order reversed": {"images": images[:, ::-1]},
        "sign of offsets": {"coords": -coords},
        "swapped x/y": {"coords": coords[..., ::-1]},
        "probe of another scan": {"probe": probe_of(np.zeros_like(scan))},
        "modes of the probe exchanged": {"probe": probe[:, :, ::-1]},
        "conjugation": {"probe": probe.conj()},
        "mask inverted": {"good pixels": ~right["good pixels"]},
    }
    return right, found, wrong


def _loader(bench: StepBench) -> Outcome:
    """Take whole epochs of batches, of two scans and of one, with and without workers."""
    mapped = bench.once(MappedScans)
    expected: Parts = {}
    given: Parts = {}
    wrong: dict[str, Parts] = {}
    for dataset, whose in ((mapped.dataset(), "two scans"), (mapped.alone, "one scan of two modes")):
        for workers, how in ((0, "when asked"), (2, "by workers")):
            right, found, mistakes = _streamed(dataset, workers)
            name = f"{whose}, gathered {how}"
            expected |= {f"{part}: {name}": values for part, values in right.items()}
            given |= {f"{part}: {name}": values for part, values in found.items()}
            for mistake, parts in mistakes.items():
                wrong.setdefault(mistake, {}).update({f"{part}: {name}": each for part, each in parts.items()})
    return Outcome(expected, given, FLOAT32, [Hypothesis(mistake, gives) for mistake, gives in wrong.items()])


def _if_another_order(found: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return what was found if it is the same groups in another order, else what is right."""
    return found if np.array_equal(np.sort(found), np.sort(right)) else right


SPLIT = TrainingSettings(batch_size=6, seed=4, num_workers=2, validation_fraction=0.2, device="cpu")
Found = np.ndarray | bool


def _judged_split(
    dataset: PtychoDataset, settings: TrainingSettings
) -> tuple[dict[str, tuple[Found, Found]], dict[str, dict[str, Found]], np.ndarray, np.ndarray]:
    """Return right and found by name, mistakes, and the groups of validation with two seeds."""
    from ptycho_torch.train import loaders

    size, count = settings.batch_size, len(dataset)
    every, kept = np.arange(count), int(np.floor(0.8 * count))
    training, validation = loaders(dataset, settings)
    other, other_validation = loaders(dataset, dataclasses.replace(settings, seed=5))
    if validation is None or other_validation is None:
        raise ValueError("no group is left for validation")
    epochs = [list(training) for _ in range(2)]
    first, second = map(_order, epochs)
    kept_back, later = (_order(validation) for _ in range(2))
    rest = np.setdiff1d(every, kept_back)

    def lengths(groups: int) -> np.ndarray:
        return np.array([size] * (groups // size) + [groups % size] * bool(groups % size))

    judged: dict[str, tuple[Found, Found]] = {
        "training": (rest, np.sort(first)),
        "training of the next epoch": (rest, np.sort(second)),
        "another order than that of the split": (True, not np.array_equal(first, training.batch_sampler.groups)),
        "another order each epoch": (True, not np.array_equal(first, second)),
        "another order with another seed": (True, not np.array_equal(first, _order(other))),
        "the same order with the same seed": (first, _order(loaders(dataset, settings)[0])),
        "lengths of batches": (lengths(kept), np.array([len(batch.groups) for batch in epochs[0]])),
        "validation of the next epoch": (kept_back, later),
        "lengths of validation": (lengths(count - kept), np.array([len(each.groups) for each in validation])),
        "workers": (np.full(2, settings.num_workers), np.array([training.num_workers, validation.num_workers])),
    }
    by_default = int(np.floor(0.95 * count))
    mistakes: dict[str, dict[str, Found]] = {
        "validation groups shuffled": {"validation of the next epoch": _if_another_order(later, kept_back)},
        "the same order with every seed": {"another order with another seed": False},
        "the same order each epoch": {"another order each epoch": False},
        "training groups not shuffled": {
            "another order than that of the split": False,
            "another order each epoch": False,
            "another order with another seed": settings.validation_selection == SPLIT.validation_selection,
        },
        "validation groups in training as well": {
            "training": every, "training of the next epoch": every, "lengths of batches": lengths(count)
        },
        "training and validation exchanged": {
            "lengths of batches": lengths(count - kept), "lengths of validation": lengths(kept)
        },
        "the default fraction for validation": {
            "lengths of batches": lengths(by_default), "lengths of validation": lengths(count - by_default)
        },
    }  # fmt: skip
    return judged, mistakes, kept_back, _order(other_validation)


def _split(bench: StepBench) -> Outcome:
    """Take loaders as training makes them, with validation at random, the last groups, and none."""
    from ptycho_torch.train import loaders

    dataset = bench.once(MappedScans).dataset()
    every = np.arange(len(dataset))
    kept = int(np.floor(0.8 * len(dataset)))
    random, random_mistakes, *drawn = _judged_split(dataset, SPLIT)
    last, last_mistakes, *fixed = _judged_split(dataset, dataclasses.replace(SPLIT, validation_selection="last"))
    random["validation at random"] = (True, not np.array_equal(np.sort(drawn[0]), every[kept:]))
    random["validation with another seed"] = (True, not np.array_equal(drawn[0], drawn[1]))
    random_mistakes |= {
        "validation groups not taken at random": {
            "validation at random": False, "validation with another seed": False
        },
        "the same validation groups with every seed": {"validation with another seed": False},
    }  # fmt: skip
    names = ("validation", "validation with another seed")
    last |= {name: (every[kept:], groups) for name, groups in zip(names, fixed, strict=True)}
    last_mistakes |= {
        "validation groups taken from the front": dict.fromkeys(names, every[: len(every) - kept]),
        "validation groups taken at random": dict(zip(names, drawn, strict=True)),
    }
    whole, none = loaders(dataset, dataclasses.replace(SPLIT, validation_fraction=0.0))
    expected = {"no validation": np.array(True), "all groups in training": every}
    given = {"no validation": np.array(none is None), "all groups in training": np.sort(_order(whole))}
    wrong: dict[str, Parts] = {}
    for name, judged, mistakes in (("random", random, random_mistakes), ("last", last, last_mistakes)):
        expected |= {f"{part}: {name}": np.asarray(right) for part, (right, _) in judged.items()}
        given |= {f"{part}: {name}": np.asarray(found) for part, (_, found) in judged.items()}
        for mistake, gives in mistakes.items():
            wrong.setdefault(mistake, {}).update({f"{part}: {name}": np.asarray(each) for part, each in gives.items()})
    return Outcome(expected, given, 0.0, [Hypothesis(mistake, gives) for mistake, gives in wrong.items()])


LOADING: tuple[Step, ...] = (
    Step("data.epoch", ("STEP-DATA",), _epoch, ("tensordict",)),
    Step("data.loader", ("STEP-DATA", "BATCH-01", "BATCH-02", "BATCH-03", "BATCH-04"), _loader, ("tensordict",)),
    Step("data.split", ("STEP-DATA",), _split, ("lightning", "tensordict")),
)

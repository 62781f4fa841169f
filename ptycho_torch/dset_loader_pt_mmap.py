"""Memory-mapped scans as batches of groups: dataset, batch, sampler and loader.

Shapes and units: tables *One batch of groups* and *Memory map* of
<doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

import dataclasses
import functools
import logging
import math
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from ptycho_torch.config_params import DataConfig, DataSettings
from ptycho_torch.data.map_list import list_map
from ptycho_torch.data.memory_map import Inputs, MemoryMap, open_map
from ptycho_torch.data.photons import METADATA, PATTERNS_LOOKED_AT, are_counts, normalised_notice, stated_photons
from ptycho_torch.data.preparation import DerivedSettings, derive, median_step
from ptycho_torch.data.scan_arrays import ScanArrays, ScanSource, open_members, path_of
from ptycho_torch.errors import ConfigError
from ptycho_torch.files.folders import map_folder, probe_paths, scan_paths

log = logging.getLogger(__name__)

VALIDATION_FRACTION = 0.05
"""The last part of the groups, as the reference splits them."""

_REFERENCES_OF_FREE = 3
_NAMES_SHOWN = 3
_AHEAD = 2
"""Batches that each worker has ready before they are asked for."""


@dataclasses.dataclass(frozen=True)
class PtychoBatch:
    """One batch of groups [clauses BATCH-01 … BATCH-05].

    To Python it is the tuple ``(images, coords, probe, scale)``: it unpacks into these four, ``batch[0]`` are the
    images, and its length is 4, however many groups it has. (A TensorDict would unpack into its samples.) All else has
    a name.

    Attributes:
        images: measured amplitude times ``scale``.
        coords: o_c, minus the position relative to the group's mean, (x, y) last, pixels.
        scale: the factor that the measured amplitude was multiplied by.
        centres: mean position of each group, (x, y), pixels, float64.
        indices: rows of the map that the patterns come from.
        groups: numbers of the groups in the dataset.
        experiment_ids: number of the scan of each group.
        probes: the probe modes of the scans that occur, compact.
        probe_ids: which row of ``probes`` belongs to each group.
        masks: good pixels of the same scans, or None where every pixel is good.
    """

    images: Float[Tensor, "B C N N"]
    coords: Float[Tensor, "B C 1 2"]
    scale: Float[Tensor, "B"]
    centres: Float[Tensor, "B 1 1 2"]
    indices: Int[Tensor, "B C"]
    groups: Int[Tensor, "B"]
    experiment_ids: Int[Tensor, "B"]
    probes: Complex[Tensor, "e M N N"]
    probe_ids: Int[Tensor, "B"]
    masks: Bool[Tensor, "e N N"] | None

    @property
    def probe(self) -> Complex[Tensor, "B C N N"] | Complex[Tensor, "B C M N N"]:
        """The probe of every pattern: (B, C, N, N), or (B, C, modes, N, N) with more than one mode.

        A view that repeats one probe where all groups share it.
        """
        B, C = self.indices.shape
        modes = self.probes if len(self.probes) == 1 else self.probes[self.probe_ids]  # (1 or B, M, N, N)
        if modes.shape[1] == 1:
            return modes.expand(B, C, -1, -1)
        return modes[:, None].expand(B, C, -1, -1, -1)

    @property
    def good_pixels(self) -> Bool[Tensor, "B 1 N N"] | None:
        """True where a pixel counts in the loss; None where every pixel of every scan does."""
        return None if self.masks is None else self.masks[self.probe_ids][:, None]

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.coords, self.probe, self.scale))

    def __len__(self) -> int:
        return 4

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Tensor, ...]: ...

    def __getitem__(self, index: int | slice) -> Tensor | tuple[Tensor, ...]:
        return tuple(self)[index]

    def to(self, *arguments: Any, **keywords: Any) -> Self:
        """Return the batch with every tensor on another device: the arguments of ``torch.Tensor.to`` but a dtype.

        Probes travel once for each scan, not once for each pattern. Raises ``TypeError`` for a dtype, and for a
        tensor, whose dtype ``torch.Tensor.to`` would take as well.
        """
        if any(isinstance(each, torch.dtype | Tensor) for each in (*arguments, *keywords.values())):
            raise TypeError("A batch holds whole numbers, real and complex tensors; .to changes the device, no dtype.")
        return self._each(lambda tensor: tensor.to(*arguments, **keywords))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, for copies to a GPU that overlap with its work."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Any) -> Self:
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return dataclasses.replace(self, **{name: change(value) for name, value in fields if value is not None})


class PtychoDataset(torch.utils.data.Dataset[PtychoBatch]):
    """Groups of patterns of one or many scans, memory-mapped.

    Args:
        ptycho_dir: folder of scans, one NPZ file an experiment, or a single scan; or scans in memory, for which
            ``from_arrays`` is the shorter way.
        probe_dir: folder of probes, one for all scans or one for each by its stem; None takes ``probeGuess`` of
            each scan.
        data_dir: folder of the map; one map at a time lives there. None takes the folder in ``data/memmap`` that
            every command has for these scans (``folders.map_folder``). For scans in memory it takes a temporary
            folder, which is removed as soon as the map is open.
        remake_map: build the map anew. Without it a map that is current is used, and any other is rebuilt,
            saying why.
        settings: how groups are made; None takes what ``DataConfig()`` says now.
        probe: (N, N) or (modes, N, N) probe for every scan, in place of files.
        progress: show a bar while the map is built; None shows it in a terminal.

    Raises:
        DataContractError: a scan or probe that breaks a clause.
        MapError: no space, no right to write, or a damaged map.

    Example:
        dataset = PtychoDataset("scans", "probes")
        images, coords, probe, scale = dataset[0:16]
    """

    def __init__(
        self,
        ptycho_dir: str | Path | tuple[ScanArrays, ...],
        probe_dir: str | Path | None = None,
        data_dir: str | Path | None = None,
        remake_map: bool = False,
        *,
        settings: DataSettings | None = None,
        probe: np.ndarray | Tensor | None = None,
        progress: bool | None = None,
    ) -> None:
        self.settings = DataConfig().snapshot() if settings is None else settings
        if probe is not None and probe_dir is not None:
            raise ConfigError("probe and probe_dir each give the probe; give one of them.")
        self._scans: tuple[ScanSource, ...]
        probes, listed = None, None
        if isinstance(ptycho_dir, tuple):
            if probe_dir is not None:
                raise ConfigError("probe_dir belongs to scans in files; give those in memory probeGuess, or probe.")
            self._scans = ptycho_dir
        else:
            listed = Path(ptycho_dir) if data_dir is None else None
            data_dir = map_folder(ptycho_dir, data_dir)
            self._scans = files = scan_paths(Path(ptycho_dir))
            if probe_dir is not None and self.settings.probe_dir_get:
                probes = probe_paths(files, Path(probe_dir))
        self._arguments = (ptycho_dir, probe_dir, data_dir, self.settings, probe)
        self._place = str(data_dir or "in memory")
        if probe_dir is not None and probes is None:
            log.warning("probe_dir_get is False: probes come from the scans, not from %s", probe_dir)
        given = None if probe is None else _complex64(probe)
        inputs = Inputs(self._scans, probes, given)
        if data_dir is None:
            # What is mapped lives on without its files, for as long as a tensor refers to it.
            with tempfile.TemporaryDirectory(prefix="ptycho-map-") as folder:
                self._map = open_map(Path(folder), inputs, self.settings, progress=progress)
        else:
            self._map = open_map(Path(data_dir), inputs, self.settings, remake=remake_map, progress=progress)
            if listed is not None:
                list_map(Path(data_dir), listed)
        self._amplitude = _plain(self._map.patterns["amplitude"])
        self._positions = _plain(self._map.scan["positions_px"])
        self._nn_indices = _plain(self._map.groups["nn_indices"])
        self._coords = _plain(self._map.groups["coords_relative"])
        self._centres = _plain(self._map.groups["coords_center"])
        self._experiment_id = _plain(self._map.groups["experiment_id"])
        self._first_scan = torch.zeros(1, dtype=torch.int64)
        self._scale = _plain(self._map.experiments["scale"]).clone()
        self._probes = _plain(self._map.experiments["probe"]).clone()
        masks = _plain(self._map.experiments["good_pixels"]).clone()
        self._masks = None if bool(masks.all()) else masks
        log.info(
            "%s: %d groups of %d patterns out of %d, from %d scans",
            self._place, len(self), self.settings.C, len(self._amplitude), len(self.names),
        )  # fmt: skip

    @classmethod
    def from_arrays(
        cls,
        *scans: ScanArrays | Mapping[str, Any],
        settings: DataSettings | None = None,
        probe: np.ndarray | Tensor | None = None,
        data_dir: str | Path | None = None,
    ) -> Self:
        """Make a dataset of scans in memory: the same groups and batches as of the same scans in files, bit for bit.

        Args:
            scans: each one key of the contract → array, as ``np.load`` of a scan file gives them: ``diff3d`` (M, N, N)
                amplitude, ``xcoords`` and ``ycoords`` (M,) object pixels, ``probeGuess`` (N, N) or (modes, N, N), and
                so on; they are called scan-0, scan-1, … unless they are ``ScanArrays``, which have names.
            settings: how groups are made; None takes what ``DataConfig()`` says now.
            probe: (N, N) or (modes, N, N) probe for every scan, in place of ``probeGuess``.
            data_dir: folder of the map, which stays there; None takes a temporary one.

        Raises:
            ConfigError: no scan, or two of one name.
            DataContractError: arrays that break a clause.
            MapError: no space.
        """
        named = [
            scan if isinstance(scan, ScanArrays) else ScanArrays(f"scan-{number}", scan)
            for number, scan in enumerate(scans)
        ]
        names = [scan.name for scan in named]
        if not named or len(set(names)) < len(names):
            raise ConfigError(f"from_arrays needs one scan or several of different names; found {names}.")
        return cls(tuple(named), data_dir=data_dir, settings=settings, probe=probe)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as what the map was made from.

        The map is opened there and no pattern copied, unless its scans are in memory.
        """
        return _reopen, self._arguments

    @property
    def map(self) -> MemoryMap:
        """The open map; ``map.reason`` says why it was built now, if it was."""
        return self._map

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each scan: of its file, with the ``scan_index`` where a file holds several.

        ``experiment_ids`` count these.
        """
        return self._map.names

    @property
    def sources(self) -> tuple[ScanSource, ...]:
        """File of each scan, or its arrays."""
        return tuple(self._scans[file] for file in self._map.experiments["file"].tolist())

    @property
    def paths(self) -> tuple[Path, ...]:
        """File of each scan, or the name of one in memory."""
        return tuple(map(path_of, self.sources))

    @property
    def positions_px(self) -> Float[Tensor, "M 2"]:
        """Positions (x, y) of every pattern of the map, float64."""
        return self._positions

    @functools.cached_property
    def rows(self) -> dict[int, np.ndarray]:
        """Rows of the map that hold the patterns of each scan, ascending, by number of the scan."""
        files, firsts = (self._map.experiments[name].numpy() for name in ("file", "first_row"))
        # Some scan of a file has the file's first pattern.
        ends = [*(int(firsts[files == file].min()) for file in range(len(self._scans))), len(self._positions)]
        index = self._map.scan["scan_index"].numpy()
        rows = {}
        for number, (file, own) in enumerate(zip(files, self._map.experiments["scan_index"].numpy(), strict=True)):
            rows[number] = ends[file] + np.flatnonzero(index[ends[file] : ends[file + 1]] == own)
        return rows

    def pattern_numbers(self, number: int) -> np.ndarray:
        """Return where the patterns of a scan, by its number, stand in their file: the first has 0."""
        file = self._map.experiments["file"]
        first = self._map.experiments["first_row"][file == file[number]].min()
        return self.rows[number] - int(first)

    @property
    def amplitude(self) -> Float[Tensor, "M N N"]:
        """Amplitude of every pattern of the map as measured, memory-mapped; bad pixels are 0."""
        return self._amplitude

    @property
    def good_pixels(self) -> Bool[Tensor, "E N N"] | None:
        """Good pixels of each scan, or None where every pixel of every scan is good."""
        return self._masks

    @property
    def centres_px(self) -> Float[Tensor, "L 2"]:
        """Mean position (x, y) of each group, float64."""
        return self._centres[:, 0, 0]

    @property
    def experiment_ids(self) -> Int[Tensor, "L"]:
        """Number of the scan of each group."""
        return self._experiment_id

    @property
    def nn_indices(self) -> Int[Tensor, "L C"]:
        """Rows of the map that each group consists of."""
        return self._nn_indices

    @property
    def probes(self) -> Complex[Tensor, "E M N N"]:
        """Probe modes of each scan."""
        return self._probes

    @property
    def scale(self) -> Float[Tensor, "E"]:
        """Normalisation factor of each scan."""
        return self._scale

    def __len__(self) -> int:
        return len(self._nn_indices)

    def __repr__(self) -> str:
        names = ", ".join(self.names[:_NAMES_SHOWN]) + (" …" if len(self.names) > _NAMES_SHOWN else "")
        tables = (self._map.patterns, self._map.scan, self._map.groups, self._map.experiments)
        size_mb = sum(table.bytes() for table in tables) / 1e6
        return (
            f"{type(self).__name__}({len(self.names)} scans: {names}; {len(self._amplitude)} patterns, "
            f"{len(self)} groups; N = {self.settings.N}, gridsize = {self.settings.gridsize}; "
            f"map {self._place}, {size_mb:.1f} MB)"
        )

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray | Tensor) -> PtychoBatch:
        """Return groups as a batch; a single number gives a batch of one.

        Raises:
            IndexError: a number that no group has.
        """
        return self.gather(self.group_numbers(index))

    def gather(
        self, groups: Int[Tensor, "B"], images: Float[Tensor, "BC N N"] | None = None, *, single_thread: bool = False
    ) -> PtychoBatch:
        """Return the batch of groups that are known to exist.

        Args:
            groups: numbers of the groups, int64; they are not checked.
            images: memory for the images, which the batch then owns; None takes new memory.
            single_thread: gather with the calling thread alone. Each thread that calls a large operation of PyTorch
                gets a team of OpenMP threads, and the team of one that only gathers takes the cores from the one that
                trains: by half of its speed on two cores.
        """
        nn = self._nn_indices.index_select(0, groups)  # (B, C)
        B, C = nn.shape
        rows = nn.reshape(-1).long()  # Gathering by 64-bit numbers is faster than by 32-bit ones.
        if images is None:
            images = torch.empty(len(rows), *self._amplitude.shape[1:])
        if single_thread:
            # These rows exist; any other mode would copy once more.
            np.take(self._amplitude.numpy(), rows.numpy(), axis=0, out=images.numpy(), mode="clip")
        else:
            torch.index_select(self._amplitude, 0, rows, out=images)
        images = images.view(B, C, *images.shape[1:])
        if len(self._scale) == 1:
            # The common case of one scan needs no table of scans: small batches are ruled by the calls they cost.
            experiment_ids = probe_ids = self._first_scan.expand(B)
            scale, probes, masks = self._scale.expand(B), self._probes, self._masks
            factor: Tensor = self._scale
        else:
            experiment_ids = self._experiment_id.index_select(0, groups).long()
            scale = self._scale.index_select(0, experiment_ids)
            present, probe_ids = experiment_ids.unique(return_inverse=True)
            probes = self._probes.index_select(0, present)
            masks = None if self._masks is None else self._masks.index_select(0, present)
            factor = scale[:, None, None, None]
        if self.settings.normalize and single_thread:
            np.multiply(images.numpy(), factor.numpy(), out=images.numpy())
        elif self.settings.normalize:
            images.mul_(factor)
        return PtychoBatch(
            images=images,
            coords=self._coords.index_select(0, groups),
            scale=scale,
            centres=self._centres.index_select(0, groups),
            indices=nn,
            groups=groups,
            experiment_ids=experiment_ids,
            probes=probes,
            probe_ids=probe_ids,
            masks=masks,
        )

    def group_numbers(self, index: int | slice | Sequence[int] | np.ndarray | Tensor) -> Int[Tensor, "B"]:
        """Return an index as checked numbers of groups, int64.

        Raises:
            IndexError: a number that no group has.
        """
        if isinstance(index, slice):
            numbers = range(len(self))[index]
            # torch.arange refuses ends that lie the wrong way round, where a range is empty.
            return torch.arange(numbers.start, numbers.stop if numbers else numbers.start, numbers.step)
        groups = torch.as_tensor(index)
        if not groups.numel():
            groups = groups.long()
        if groups.dtype == torch.bool or groups.is_floating_point() or groups.is_complex() or groups.ndim > 1:
            raise IndexError(f"Groups are counted by whole numbers; found {groups.dtype}, shape {tuple(groups.shape)}.")
        groups = groups.reshape(-1).long()
        groups = torch.where(groups < 0, groups + len(self), groups)
        if len(groups) and (int(groups.min()) < 0 or int(groups.max()) >= len(self)):
            raise IndexError(f"The dataset has {len(self)} groups, 0 … {len(self) - 1}; found {index}.")
        return groups

    def validation_split(
        self, fraction: float = VALIDATION_FRACTION, *, shuffle_seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the numbers of the training groups and of the validation groups.

        Validation is the last n − ⌊(1 − fraction)·n⌋ groups, taken before any shuffling, as the reference has it. Its
        groups stand in random order; those of the samplers ``with_centre`` and ``without_centre`` stand in scan order,
        and there ``shuffle_seed`` takes the last ones of a permutation in place of one corner of the last scan.

        Raises:
            ConfigError: ``fraction`` is not in [0, 1).
        """
        if not 0 <= fraction < 1:
            raise ConfigError(f"validation fraction = {fraction}; expected 0 ≤ fraction < 1.")
        groups = torch.arange(len(self)) if shuffle_seed is None else _permutation(len(self), shuffle_seed, 0)
        training = math.floor(len(self) * (1 - fraction))
        return groups[:training], groups[training:]

    def derived(self, *, offset: int | None = None, max_position_jitter: int | None = None) -> DerivedSettings:
        """Return and log nphotons, offset and max_position_jitter, each derived unless given [clause PREP-02].

        Raises:
            DataContractError: PREP-02.
        """
        positions, groups = self._positions.numpy(), self._nn_indices.numpy()
        energy = self._map.patterns["energy"].numpy()
        steps = [median_step(positions[rows]) for rows in self.rows.values()]
        nphotons, source = self._nphotons()
        derived = derive(
            mean_counts=float(energy[groups].mean()),
            step_px=float(np.median(steps)),
            reach_px=self._coords.abs().amax(dim=(1, 2, 3)).numpy(),
            gridsize=self.settings.gridsize,
            nphotons=nphotons,
            nphotons_source=source,
            offset=offset,
            max_position_jitter=max_position_jitter,
        )
        for line in derived.describe():
            log.info("%s", line)
        return derived

    @functools.cached_property
    def stated_nphotons(self) -> tuple[float | None, ...]:
        """Mean counts of a pattern of each scan, where its ``_metadata`` says it, or None."""
        stated = [stated_photons(open_members(scan)) for scan in self._scans]
        for path, each in zip(self._scans, stated, strict=True):
            if each.note:
                log.log(logging.WARNING if each.nphotons is None else logging.INFO, "%s: %s", path, each.note)
        return tuple(stated[file].nphotons for file in self._map.experiments["file"].tolist())

    def _nphotons(self) -> tuple[float | None, str]:
        """Return the photon number that settings or scans give, and who does; None where the patterns decide."""
        stated, given = self.stated_nphotons, self.settings.nphotons
        if given is not None:
            for path, number in zip(self.paths, stated, strict=True):
                if number not in (None, given):
                    log.warning("%s: nphotons = %.6g as given, not %.6g of its %s", path, given, number, METADATA)
            return given, "as given"
        energy, ids = self._map.patterns["energy"].numpy(), self._experiment_id.numpy()
        nphotons, shares = [], np.bincount(ids, minlength=len(stated))
        for number, (path, rows) in enumerate(zip(self.paths, self.rows.values(), strict=True)):
            mean = float(energy[self._nn_indices.numpy()[ids == number]].mean())
            nphotons.append(mean if (own := stated[number]) is None else own)
            looked_at = self._amplitude[torch.from_numpy(rows[:: max(1, len(rows) // PATTERNS_LOOKED_AT)])]
            if own is None and are_counts(looked_at.numpy()) is False:
                log.warning("%s: %s", path, normalised_notice(mean))
        if not any(stated):
            return None, ""
        # The mean of equal numbers is rounded, and they are told exactly.
        mean = nphotons[0] if len(set(nphotons)) == 1 else float(np.average(nphotons, weights=shares))
        where = "the scan" if len(stated) == 1 else f"{sum(map(bool, stated))} of {len(stated)} scans"
        return mean, f"of {METADATA} in {where}"


def _reopen(
    ptycho_dir: str | Path | tuple[ScanArrays, ...],
    probe_dir: str | Path | None,
    data_dir: str | Path | None,
    settings: DataSettings,
    probe: np.ndarray | Tensor | None,
) -> PtychoDataset:
    """Open the map of a dataset that was pickled."""
    return PtychoDataset(ptycho_dir, probe_dir, data_dir, settings=settings, probe=probe)


def _complex64(probe: np.ndarray | Tensor) -> np.ndarray:
    array = probe.numpy(force=True) if isinstance(probe, Tensor) else probe
    return np.ascontiguousarray(array, np.complex64)


def _plain(tensor: Tensor) -> Tensor:
    """Return a memory-mapped tensor as a plain one over the same memory."""
    return tensor.as_subclass(torch.Tensor)


def _normal_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor over an array that other threads may fill, also where the caller is in inference mode."""
    with torch.inference_mode(False):
        return torch.from_numpy(array)


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation that seed and epoch decide; NumPy keeps this generator's stream unchanged for ever."""
    return torch.from_numpy(np.random.RandomState([seed, epoch]).permutation(count))


class GroupSampler:
    """Which groups make up each batch of an epoch, for one of several processes.

    An epoch is one permutation of all groups, or their own order. A global batch is ``batch_size`` groups for each
    process; process r takes the r-th part of it. A last, smaller batch is used; with several processes it is filled up
    with groups from the front to one length for all, so that no process waits for another in vain.

    Args:
        groups: numbers of the groups to draw from.
        batch_size: groups in the batch of one process.
        shuffle: a new permutation each epoch.
        seed: of the permutations.
        drop_last: leave out a last, smaller batch.
        rank: number of this process; None asks ``torch.distributed``.
        world_size: number of processes; None asks ``torch.distributed``.
    """

    def __init__(
        self,
        groups: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}; expected 1 or more.")
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed = {seed}; expected 0 … 2³² − 1.")
        if (rank is None) != (world_size is None) or (world_size is not None and not 0 <= (rank or 0) < world_size):
            raise ConfigError(
                f"rank = {rank} of world_size = {world_size}; expected 0 ≤ rank < world_size, or neither."
            )
        self.groups, self.batch_size, self.shuffle = groups, batch_size, shuffle
        self.seed, self.drop_last = seed, drop_last
        self._rank, self._world_size = rank, world_size
        self.epoch = 0

    @property
    def rank(self) -> int:
        """Number of this process."""
        return _distributed()[0] if self._rank is None else self._rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return _distributed()[1] if self._world_size is None else self._world_size

    @property
    def sampler(self) -> Self:
        """This sampler: Lightning says the epoch to ``loader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        together = self.batch_size * self.world_size
        return len(self.groups) // together if self.drop_last else math.ceil(len(self.groups) / together)

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches(self.epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the groups of each batch of an epoch, from batch ``start`` on."""
        groups = self.groups
        if self.shuffle:
            groups = groups[_permutation(len(groups), self.seed, epoch)]
        rank, world_size = self.rank, self.world_size
        together = self.batch_size * world_size
        for number in range(start, len(self)):
            batch = groups[number * together : (number + 1) * together]
            missing = -len(batch) % world_size
            if missing:
                batch = torch.cat([batch, groups.repeat(math.ceil(missing / len(groups)))[:missing]])
            yield batch if world_size == 1 else batch.tensor_split(world_size)[rank]


def _distributed() -> tuple[int, int]:
    """Return rank and number of processes; 0 and 1 outside ``torch.distributed``."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class TensorDictDataLoader:
    """Streams the batches of a dataset; each unpacks as ``(images, coords, probe, scale)``.

    Every iterator that a batch is taken from is an epoch of its own: 0, 1, 2, …, each with its permutation. The
    position in the epoch can be saved and restored to the batch. Workers are threads: gathering from a memory map
    releases Python's lock, and a batch needs no copy between processes.

    Args:
        dataset: where groups come from.
        batch_size: groups in a batch.
        groups: numbers of the groups to draw from, for example from ``validation_split``; None is all.
        shuffle: a new permutation each epoch.
        seed: of the permutations.
        num_workers: threads that gather batches ahead; 0 gathers when asked.
        pin_memory: give batches in page-locked memory.
        drop_last: leave out a last, smaller batch.
        rank: number of this process; None asks ``torch.distributed``.
        world_size: number of processes; None asks ``torch.distributed``.

    Raises:
        ConfigError: a number out of range.

    Example:
        training, validation = dataset.validation_split()
        for images, coords, probe, scale in TensorDictDataLoader(dataset, 16, groups=training, shuffle=True): ...
    """

    def __init__(
        self,
        dataset: PtychoDataset,
        batch_size: int = 16,
        *,
        groups: Tensor | None = None,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if num_workers < 0:
            raise ConfigError(f"num_workers = {num_workers}; expected 0 or more threads.")
        self.dataset = dataset
        self.num_workers, self.pin_memory = num_workers, pin_memory
        # Not ``sampler``: Lightning takes a loader that has one for ``torch``'s and tries to make it anew.
        self.batch_sampler = GroupSampler(
            dataset.group_numbers(slice(None) if groups is None else groups),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )
        self._position = (0, 0)
        self._resumed = False
        # As many as are under way and in the hands of a caller that holds the batch before.
        self._arrays: deque[np.ndarray] = deque(maxlen=num_workers * _AHEAD + 4)

    @property
    def batch_size(self) -> int:
        """Groups in a batch."""
        return self.batch_sampler.batch_size

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __repr__(self) -> str:
        sampler = self.batch_sampler
        order = f"shuffled with seed {sampler.seed}" if sampler.shuffle else "in order"
        return (
            f"{type(self).__name__}({len(self)} batches of {self.batch_size}: {len(sampler.groups)} groups, {order}, "
            f"of {self.dataset!r})"
        )

    def set_epoch(self, epoch: int) -> None:
        """Make the next epoch that begins this one, or go on where a restored position lies in it."""
        self.batch_sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[PtychoBatch]:
        # All of it runs when the first batch is asked for: Lightning makes iterators that it takes none from, and says
        # which epoch it is behind that.
        epoch, start = self.batch_sampler.epoch, 0
        if self._resumed and self._position[0] == epoch:
            start = self._position[1]
        self._resumed = False
        self._position = (epoch, start)
        # An epoch that is interrupted is over as well; the next one has a permutation of its own.
        self.batch_sampler.set_epoch(epoch + 1)
        batches = self.batch_sampler.batches(epoch, start)
        for number, batch in enumerate(self._gathered(batches), start=start + 1):
            self._position = (epoch, number)
            yield batch
        self._position = (epoch + 1, 0)

    def _gathered(self, batches: Iterator[Tensor]) -> Iterator[PtychoBatch]:
        if not self.num_workers:
            for batch in batches:
                yield self._gather(batch, self._memory(len(batch)), False)
            return
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="gather-batches") as workers:
            coming: deque[Future[PtychoBatch]] = deque()
            try:
                for batch in batches:
                    coming.append(workers.submit(self._gather, batch, self._memory(len(batch)), True))
                    if len(coming) > self.num_workers * _AHEAD:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                for future in coming:
                    future.cancel()

    def _memory(self, groups: int) -> Float[Tensor, "BC N N"]:
        """Return memory for the images of a batch: some that no tensor refers to any more, or new memory.

        Whether an allocator uses a freed block again or asks the system for a new one is a matter of luck, and pages
        that the system has to clear first make a batch several times slower. A tensor over an array holds a reference
        to it for as long as it, or any view of it, lives.
        """
        settings = self.dataset.settings
        shape = (groups * settings.C, settings.N, settings.N)
        for array in self._arrays:
            # Referred to by the list, by the loop, and by the call that counts.
            if array.shape == shape and sys.getrefcount(array) == _REFERENCES_OF_FREE:
                return _normal_tensor(array)
        fresh = np.empty(shape, np.float32)
        self._arrays.append(fresh)
        return _normal_tensor(fresh)

    def _gather(self, groups: Tensor, images: Tensor, single_thread: bool) -> PtychoBatch:
        batch = self.dataset.gather(groups, images, single_thread=single_thread)
        return batch.pin_memory() if self.pin_memory else batch

    def state_dict(self) -> dict[str, int | bool]:
        """Return the position in the epoch: what was yielded so far counts as done."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a position; the next ``iter`` yields the batch behind it.

        Raises:
            ConfigError: the position is that of a loader with other groups, batches, or permutations, or no position.
        """
        for name, ours in self._identity().items():
            if state.get(name) != ours:
                raise ConfigError(
                    f"The saved position belongs to a loader with {name} = {state.get(name)}; this one has {ours}. "
                    "Make the loader as it was, or start a new epoch."
                )
        epoch, batch = state.get("epoch"), state.get("batch")
        if not isinstance(epoch, int) or not isinstance(batch, int) or epoch < 0 or not 0 <= batch <= len(self):
            raise ConfigError(f"epoch = {epoch!r}, batch = {batch!r} is no position among {len(self)} batches.")
        self._position = (epoch, batch)
        self._resumed = True
        self.batch_sampler.set_epoch(self._position[0])

    def _identity(self) -> dict[str, int | bool]:
        sampler = self.batch_sampler
        return {
            "groups": len(sampler.groups),
            "batch_size": sampler.batch_size,
            "shuffle": sampler.shuffle,
            "seed": sampler.seed,
            "drop_last": sampler.drop_last,
            "world_size": sampler.world_size,
        }

"""Which network do weights belong to? Every network of the weight table is found from its shapes alone."""

from __future__ import annotations

import itertools

import pytest

from ptycho_tf_bridge.archives.recognise import find_network
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.weights import weight_table
from ptycho_torch.config_params import NetworkSettings


def networks() -> list[NetworkSettings]:
    found = []
    for N, g, s, pad, probe_big, object_big, shared in itertools.product(
        (64, 128, 256), (1, 2, 3), (1, 2, 3), *([(True, False)] * 4)
    ):
        if not (shared and (g == 1 or not object_big)):
            found.append(
                NetworkSettings(
                    N=N, gridsize=g, n_filters_scale=s, pad_object=pad, probe_big=probe_big, object_big=object_big,
                    shared_amplitude_head=shared,
                )
            )  # fmt: skip
    return found


def kernels(settings: NetworkSettings) -> list[tuple[int, ...]]:
    return [entry.kernel_shape for entry in weight_table(settings)]


def test_every_network_is_found_from_its_shapes() -> None:
    every = networks()
    assert len(every) == 3 * 3 * (4 * 2 + 2 * 4 * 3)
    for settings in every:
        found = find_network(kernels(settings), "weights")
        assert weight_table(found.settings) == weight_table(settings)
        assert {name: getattr(settings, name) for name in found.decided} == dict(found.decided)


def test_what_no_weight_shows_is_not_decided() -> None:
    assert "object_big" not in find_network(kernels(NetworkSettings(gridsize=1)), "weights").decided
    assert "probe_big" not in find_network(kernels(NetworkSettings(pad_object=False)), "weights").decided
    assert "object_big" in find_network(kernels(NetworkSettings(gridsize=2)), "weights").decided


@pytest.mark.parametrize("index", [0, 3, 7, 14, 18, 20, 21])
def test_a_kernel_of_another_shape_is_named(index: int) -> None:
    shapes = kernels(NetworkSettings(N=64, gridsize=2))
    shapes[index] = (*shapes[index][:3], shapes[index][3] + 1)
    with pytest.raises(ArchiveError, match="no network of the reference has these weights"):
        find_network(shapes, "weights")


def test_missing_or_additional_convolutions_are_seen() -> None:
    shapes = kernels(NetworkSettings(N=64, gridsize=2))
    for wrong in (shapes[:-2], [*shapes, shapes[-1]], shapes[:1], []):
        with pytest.raises(ArchiveError, match="weights"):
            find_network(wrong, "weights")


def test_an_outer_path_of_before_july_2024_is_refused_with_the_reason() -> None:
    shapes = [
        (3, 3, 4, 64) if shape == (3, 3, 4, 32) else (3, 3, 64, 64) if shape == (3, 3, 32, 32) else shape
        for shape in kernels(NetworkSettings(N=128, gridsize=2))
    ]
    # The encoder of N = 128 has 32 channels in its first block as well.
    shapes[:2] = kernels(NetworkSettings(N=128, gridsize=2))[:2]
    with pytest.raises(ArchiveError, match="before 2024-07-16"):
        find_network(shapes, "weights")


def test_another_architecture_is_named_as_such() -> None:
    with pytest.raises(ArchiveError, match="another architecture"):
        find_network([(3, 3, 5, 7), (3, 3, 7, 7)], "weights")

"""Layouts: each pair undoes itself, and means the axes that its name says."""

import numpy as np
import pytest

from ptycho_tf_bridge.errors import LayoutError
from ptycho_tf_bridge.layout import LAYOUTS

# B = 3 and C = 4 differ from each other and from every other length, so no two axes can be mistaken.
SHAPES = {
    "channels": ((3, 5, 6, 4), (3, 4, 5, 6)),
    "flat": ((12, 5, 6, 1), (3, 4, 5, 6)),
    "flat_modes": ((12, 5, 6, 7), (3, 4, 7, 5, 6)),
    "offsets": ((3, 1, 2, 4), (3, 4, 1, 2)),
    "kernel": ((5, 6, 3, 4), (4, 3, 5, 6)),
    "vector": ((4,), (4,)),
}


def _numbered(shape):
    return np.arange(np.prod(shape), dtype=np.float64).reshape(shape)


def test_every_layout_is_covered_here():
    assert set(SHAPES) == set(LAYOUTS)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", ">f4", "uint16"])
def test_a_round_trip_is_bit_exact_in_both_directions(name, dtype):
    tensorflow_shape, torch_shape = SHAPES[name]
    ours = _numbered(tensorflow_shape).astype(dtype)
    theirs = LAYOUTS[name].to_torch(ours, channels=4)
    assert theirs.shape == torch_shape
    assert theirs.dtype == ours.dtype
    assert theirs.flags["C_CONTIGUOUS"]
    back = LAYOUTS[name].to_tensorflow(theirs)
    assert back.dtype == ours.dtype
    assert back.tobytes() == ours.tobytes()
    assert LAYOUTS[name].to_torch(back, channels=4).tobytes() == theirs.tobytes()


def test_a_strided_input_gives_a_copy_of_its_own():
    array = _numbered((4, 6, 5, 3)).transpose(3, 2, 1, 0)
    out = LAYOUTS["channels"].to_torch(array)
    assert out.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(out, np.moveaxis(array, -1, 1))
    vector = np.arange(4.0)
    LAYOUTS["vector"].to_torch(vector)[0] = 7
    assert vector[0] == 0


@pytest.mark.parametrize("name", SHAPES)
def test_a_wrong_rank_is_named(name):
    tensorflow_shape, torch_shape = SHAPES[name]
    with pytest.raises(LayoutError, match=f"{name}.*{len(tensorflow_shape) + 1} axes instead"):
        LAYOUTS[name].to_torch(np.zeros((1, *tensorflow_shape)), channels=4)
    with pytest.raises(LayoutError, match=f"{name}.*{len(torch_shape) + 1} axes instead"):
        LAYOUTS[name].to_tensorflow(np.zeros((1, *torch_shape)))


def test_a_fixed_axis_of_another_length_is_refused():
    with pytest.raises(LayoutError, match="length 2 has length 3"):
        LAYOUTS["offsets"].to_torch(np.zeros((3, 1, 3, 4)))
    with pytest.raises(LayoutError, match="length 1 has length 7"):
        LAYOUTS["flat"].to_torch(np.zeros((12, 5, 6, 7)), channels=4)


@pytest.mark.parametrize(("channels", "message"), [(None, "channels=C"), (0, "channels=C"), (5, "groups of 5")])
def test_a_folded_axis_needs_a_fitting_channel_count(channels, message):
    assert LAYOUTS["flat"].needs_channels
    assert not LAYOUTS["channels"].needs_channels
    with pytest.raises(LayoutError, match=message):
        LAYOUTS["flat"].to_torch(np.zeros((12, 5, 6, 1)), channels=channels)


def test_a_batch_fastest_fold_would_be_caught():
    # The broken subject folds channels slowest; only a check of single elements sees it, shapes agree.
    array = _numbered((12, 5, 6, 1))
    broken = array.reshape(4, 3, 5, 6).transpose(1, 0, 2, 3)
    right = LAYOUTS["flat"].to_torch(array, channels=4)
    assert broken.shape == right.shape
    assert not np.array_equal(broken, right)

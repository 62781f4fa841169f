"""Pickles read without unpickling: what the reference saves comes out, everything else is refused."""

from __future__ import annotations

import collections
import io
import os
import pathlib
import pickle
import pickletools
import re
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_tf_bridge.archives.members import open_members
from ptycho_tf_bridge.archives.unpickle import read_pickle
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_torch.files import restricted_pickle

WHERE = "wts.h5.zip: autoencoder/params.dill"
MIB = 2**20


def refused(data: bytes, found: str) -> None:
    with pytest.raises(ArchiveError, match=re.escape(found)) as caught:
        read_pickle(data, where=WHERE)
    assert str(caught.value).startswith(f"{WHERE}: found ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


class Reduced:
    """Pickles itself as a call of a named function, with a state if there is one."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self._parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self._parts


def named(module: str, name: str) -> Callable[..., Any]:
    """A function that pickles by this name, whether or not it exists."""

    def function() -> None: ...

    function.__module__, function.__qualname__, function.__name__ = module, name, name
    return function


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # The one in Python can be told not to look names up.
    def save_global(self, obj: Any, name: str | None = None) -> None:
        module, name = obj.__module__, name or obj.__qualname__
        self.save(module)
        self.save(name)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch | {type(named): save_global}  # type: ignore[attr-defined]


def dumped(value: Any) -> bytes:
    """Pickle as dill does it, names unchecked."""
    file = io.BytesIO()
    _Pickler(file, 4).dump(value)
    return file.getvalue()


def as_dill_writes(array: np.ndarray) -> Reduced:
    """An array in the layout of ``params.dill``."""
    _, arguments, state = array.__reduce__()  # type: ignore[misc]
    return Reduced(
        named("dill._dill", "_create_array"), named("numpy.core.multiarray", "_reconstruct"), arguments, state, None
    )


# ------------------------------------------------------------------------------------------------- what is intact

PROBE = (np.random.default_rng(1).random((4, 4, 1)) + 0.5j).astype(np.complex64)
PLAIN = {
    "N": 64,
    "nphotons": 1e9,
    "label": "",
    "offsets": [1, (2.5, None)],
    "probe.mask": False,
    "big": 2**70,
    "less": -3,
}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_values_come_out_as_pickle_gives_them(protocol: int) -> None:
    data = pickle.dumps(PLAIN, protocol)
    assert read_pickle(data, where=WHERE) == pickle.loads(data)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<c8", ">c16", "|b1", "<i8", "|u1", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 3)])
def test_arrays_come_out_as_pickle_gives_them(protocol: int, dtype: str, order: Any, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape).astype(dtype), order=order)
    ours = read_pickle(pickle.dumps(array, protocol), where=WHERE)
    assert (ours.dtype, ours.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(ours, array)
    ours[...] = 0


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_scalars_paths_and_ordered_dictionaries_become_plain(protocol: int) -> None:
    value = {
        "scale": np.float32(31.25),
        "path": pathlib.PurePosixPath("/data", "run 1"),
        "windows": pathlib.PureWindowsPath("C:/data/x"),
        "ordered": collections.OrderedDict(a=1, b=[2]),
    }
    ours = read_pickle(pickle.dumps(value, protocol), where=WHERE)
    assert ours == {"scale": 31.25, "path": "/data/run 1", "windows": "C:\\data\\x", "ordered": {"a": 1, "b": [2]}}
    assert [type(part) for part in ours.values()] == [float, str, str, dict]


def test_a_tensor_of_an_array_that_dill_wrote_is_that_array() -> None:
    tensor = Reduced(named("tensorflow.python.framework.ops", "convert_to_tensor"), as_dill_writes(PROBE))
    ours = read_pickle(dumped({"probe": tensor, "again": tensor}), where=WHERE)
    assert ours["probe"].tobytes() == PROBE.tobytes()
    assert (ours["probe"].dtype, ours["probe"].shape) == (PROBE.dtype, PROBE.shape)


def test_parameters_that_the_reference_saved_are_read(shared: pathlib.Path) -> None:
    for archive, scale in (("star_g2", 20.766559600830078), ("savedmodel_era", 988.211669921875)):
        with open_members(shared / "archives" / archive / "wts.h5.zip") as members:
            ours = read_pickle(members.read("autoencoder/params.dill"), where=WHERE)
            assert read_pickle(members.read("manifest.dill"), where=WHERE)["version"] == "1.0"
            with pytest.raises(ArchiveError, match=r"ptycho\.model\.ProbeIllumination, which is code"):
                read_pickle(members.read("autoencoder/custom_objects.dill"), where=WHERE)
        assert (ours["N"], ours["gridsize"], ours["intensity_scale"]) == (64, 2, scale)
        assert (ours["probe"].shape, ours["probe"].dtype) == ((64, 64, 1), np.complex64)


# ------------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch CANARY",)),
        (os.popen, ("touch CANARY",)),
        (subprocess.Popen, (["touch", "CANARY"],)),
        (eval, ("open('CANARY', 'w')",)),
        (exec, ("open('CANARY', 'w')",)),
        (compile, ("1", "", "eval")),
        (getattr, ("", "join")),
        (__import__, ("os",)),
        (open, ("CANARY", "w")),
        (os.mkdir, ("CANARY",)),
        (np.load, ("CANARY",)),
        (np.frombuffer, (b"",)),
        (bytearray, (2**40,)),
        (pickle.loads, (pickle.dumps(Reduced(os.mkdir, "CANARY")),)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_names_of_functions_are_refused_and_never_called(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, function: Any, arguments: tuple[Any, ...], protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"N": 64, "probe": Reduced(function, *arguments)}, protocol)
    refused(data, f"{function.__name__}, which is code" if protocol > 2 else "found ")
    assert not os.listdir(tmp_path)


def test_the_canary_of_these_tests_would_sing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Reduced(os.mkdir, "CANARY")))
    assert os.listdir(tmp_path) == ["CANARY"]


@pytest.mark.parametrize(
    ("data", "opcode"),
    [
        (b"cos\nsystem\n(X\4\0\0\0truetR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "STRING"),
        (b"\x80\x04(ios\nsystem\n.", "INST"),
        (b"\x80\x04(cos\nsystem\n\x8c\x04trueo.", "OBJ"),
        (b"\x80\x04(\x8c\x04trueo.", "OBJ"),
        (b"\x80\x04)\x81.", "NEWOBJ"),
        (b"\x80\x04))}\x92.", "NEWOBJ_EX"),
        (b"\x80\x04Pid\n.", "PERSID"),
        (b"\x80\x04NQ.", "BINPERSID"),
        (b"\x80\x04\x82\x01.", "EXT1"),
        (b"\x80\x04\x83\x01\x00.", "EXT2"),
        (b"\x80\x04\x84\x01\x00\x00\x00.", "EXT4"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x04\x8f.", "EMPTY_SET"),
        (b"\x80\x04I1\n.", "INT"),
    ],
)
def test_every_opcode_that_could_reach_code_is_refused(data: bytes, opcode: str) -> None:
    refused(data, opcode)


def test_opcodes_are_allowed_one_by_one() -> None:
    allowed = set(restricted_pickle._STEPS) | restricted_pickle._VALUES
    every = {opcode.name for opcode in pickletools.opcodes}
    assert allowed < every
    assert len(allowed) == 37
    # Whatever a later Python adds is refused until somebody allows it.
    assert {"NEWOBJ", "OBJ", "INST", "PERSID", "BINPERSID", "EXT1", "LONG4", "NEXT_BUFFER"} <= every - allowed


@pytest.mark.parametrize(
    "name", ["loads", "_reconstruct.__globals__", "__builtins__", "Dtype", "ndarray.tofile", "f2py.os.system", ""]
)
@pytest.mark.parametrize("module", ["numpy", "numpy.core.multiarray", "dill._dill", "pathlib", "os", "builtins"])
def test_names_are_allowed_one_by_one_and_never_looked_up(module: str, name: str) -> None:
    refused(dumped([named(module, name)]), f"the name {module}.{name}, which is code")


# ------------------------------------------------------------------------------------------------- arrays that lie

F4 = Reduced(np.dtype, "f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
RECONSTRUCT = named("numpy.core.multiarray", "_reconstruct")
CREATE = named("dill._dill", "_create_array")
NDARRAY, DTYPE = named("numpy", "ndarray"), named("numpy", "dtype")


def dtype(code: Any, *state: Any) -> Reduced:
    return Reduced(DTYPE, code, False, True, state=state or (3, "<", None, None, None, -1, -1, 0))


def array(*state: Any) -> Reduced:
    return Reduced(RECONSTRUCT, NDARRAY, (0,), b"b", state=state)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (array(1, (2**40,), dtype("f4"), False, b"abcd"), "no tuple of a few lengths"),
        (array(1, (2,), dtype("f4"), False, b"abcd"), "an array of shape (2,) of float32 in 4 bytes"),
        (array(1, (-1,), dtype("f4"), False, b"abcd"), "no tuple of a few lengths"),
        (array(1, (True,), dtype("f4"), False, b"abcd"), "no tuple of a few lengths"),
        (array(1, [1], dtype("f4"), False, b"abcd"), "no tuple of a few lengths"),
        (array(1, (1,) * 9, dtype("f4"), False, b"abcd"), "no tuple of a few lengths"),
        (array(1, (0, 2**24, 2**24), dtype("f4"), False, b""), ""),
        (array(1, (1,), dtype("O"), False, [1]), "the dtype O"),
        (array(1, (1,), dtype("V8"), False, b"a" * 8), "the dtype V8"),
        (array(1, (1,), dtype("f4, f4"), False, b"a" * 8), "the dtype f4, f4"),
        (array(1, (1,), dtype(7), False, b"a"), "a dtype without a name"),
        (array(1, (1,), dtype("f4", 3, "<", None, ("a",), {"a": 1}, -1, -1, 0), False, b"abcd"), "fields"),
        (array(1, (1,), dtype("f4", 3, "?", None, None, None, -1, -1, 0), False, b"abcd"), "none of NumPy's"),
        (array(1, (1,), dtype("f4", 4, "<", None, None, None, -1, -1, 0, {}), False, b"abcd"), "none of NumPy's"),
        (array(1, (1,), "f4", False, b"abcd"), "not made of a dtype and bytes"),
        (array(1, (1,), dtype("f4"), False, "abcd"), "not made of a dtype and bytes"),
        (array(1, (1,), dtype("f4"), False, [1.0]), "not made of a dtype and bytes"),
        (array(0, (1,), dtype("f4"), False, b"abcd"), "none of NumPy's"),
        (array((1,), dtype("f4"), False, b"abcd"), "none of NumPy's"),
        (Reduced(RECONSTRUCT, NDARRAY, (0,), b"b"), "an array without content"),
        (Reduced(RECONSTRUCT, NDARRAY, (2**40,), b"b"), "a foreign class"),
        (Reduced(RECONSTRUCT, DTYPE, (0,), b"b"), "a foreign class"),
        (Reduced(RECONSTRUCT, NDARRAY), "_reconstruct with 1 arguments"),
        (Reduced(CREATE, DTYPE, (NDARRAY, (0,), b"b"), (), None), "a foreign class"),
        (Reduced(CREATE, RECONSTRUCT, (NDARRAY, (0,), b"b"), (1, (), F4, False, b"abcd"), {"x": 1}), "a foreign class"),
        (Reduced(NDARRAY, (2**40,)), "a call of numpy.ndarray"),
        (Reduced(named("numpy.core.multiarray", "scalar"), F4, b"ab"), "in 2 bytes"),
        (Reduced(named("numpy.core.multiarray", "scalar"), F4, 2**40), "not made of a dtype and bytes"),
        (Reduced(named("numpy.core.numeric", "_frombuffer"), b"abcd", F4, (2**40,), "C"), "no tuple of a few lengths"),
        (Reduced(named("numpy.core.numeric", "_frombuffer"), b"abcd", F4, (1,), "K"), "not made of"),
        (Reduced(named("tensorflow.python.framework.ops", "convert_to_tensor"), [1.0]), "a tensor that is not"),
        (Reduced(named("pathlib", "PosixPath"), 3), "a path"),
        (Reduced(named("pathlib", "PosixPath"), "a" * 5000), "a path"),
        (Reduced(named("collections", "OrderedDict"), [["a", 1]]), "OrderedDict with 1 arguments"),
        (DTYPE, "numpy.dtype as a value"),
        (F4, "a dtype as a value"),
        ({(1, 2): 3}, "a key of type tuple"),
        ({F4: 3}, "a key of type"),
        ({2**64: 3}, "a number of 65 bits as a key"),
    ],
)
def test_arrays_are_made_of_what_fits_and_nothing_else(value: Any, found: str) -> None:
    if not found:
        assert read_pickle(dumped(value), where=WHERE).size == 0
        return
    refused(dumped({"N": 64, "probe": value}), found)


@pytest.mark.parametrize(
    ("opcodes", "found"),
    [
        (b"", "damaged pickle"),
        (b"\x80\x04", "damaged pickle"),
        (b"\x80\x04.", "0 values at the end"),
        (b"\x80\x04NN.", "2 values at the end"),
        (b"\x80\x04(N.", "values at the end"),
        (b"\x80\x04N.N.", "2 bytes behind the pickle"),
        (b"\x80\x06N.", "protocol 6"),
        (b"\x80\x04t.", "without its mark"),
        (b"\x80\x04\x85.", "without its values"),
        (b"\x80\x04N(\x86.", "without its values"),
        (b"\x80\x04h\x07.", "damaged pickle"),
        (b"\x80\x04\x94.", "without its values"),
        (b"\x80\x04Na.", "no list"),
        (b"\x80\x04NNa.", "no list"),
        (b"\x80\x04](NNs.", "no dict"),
        (b"\x80\x04}(Nu.", "a key without its value"),
        (b"\x80\x04}Nb.", "a state for a dict"),
        (b"\x80\x04Nb.", "a state for a NoneType"),
        (b"\x80\x04))R.", "no constructor"),
        (b"\x80\x04\x8c\x02osN\x93.", "no text"),
        (b"\x80\x04\x8c\x05ab", "damaged pickle"),
        (b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b".", "an integer of more than 16 bytes"),
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "LONG_BINPUT to memo index 2147483647"),
        (b"\x80\x04X\xff\xff\xff\xff" + b"a" * 9 + b".", "damaged pickle"),
        (b"\x80\x04B\xff\xff\xff\x7f" + b"a" * 9 + b".", "damaged pickle"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"a.", "damaged pickle"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.", "damaged pickle"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.", ""),
        (b"\x80\x04" + b"N0" * 3 + b"N.", "POP"),
        (pickle.dumps("a" * 70_000), "text of 70000 characters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pickles_that_make_no_sense_are_refused(opcodes: bytes, found: str) -> None:
    if not found:
        assert read_pickle(opcodes, where=WHERE) is None  # A frame's length says nothing that is used.
        return
    refused(opcodes, found)


# ------------------------------------------------------------------------------------------------- what is too large


def laughing(levels: int, kind: type) -> bytes:
    """Each tuple or list holds the one before it twice."""
    twice = {tuple: b"h%ch%c\x86\x94", list: b"](h%ch%ce\x94"}[kind]
    return b"\x80\x04()\x94" + b"".join(twice % (i, i) for i in range(levels)) + b"t."


def many_arrays() -> bytes:
    """One buffer of 1 MiB, named for 16000 arrays."""
    content = b"B" + struct.pack("<I", MIB) + bytes(MIB)
    uint8 = b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02u1\x85R"
    shape = b"J" + struct.pack("<I", MIB) + b"\x85"
    function = b"\x8c\x12numpy.core.numeric\x8c\x0b_frombuffer\x93\x94"
    arguments = b"(" + content + uint8 + shape + b"\x8c\x01Ct\x94"
    return b"\x80\x04(" + function + arguments + b"h\x00h\x01R" * 16000 + b"t."


def many_paths() -> bytes:
    """One long name, joined to itself for 8000 paths."""
    function = b"\x8c\x07pathlib\x8c\x09PosixPath\x93\x94"
    arguments = b"X" + struct.pack("<I", 4000) + b"a" * 4000 + b"\x85\x94"
    return b"\x80\x04(" + function + arguments + b"h\x00h\x01R" * 16000 + b"t."


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (laughing(40, tuple), "inside each other"),
        (laughing(30, tuple), "more than 20000 values"),
        (laughing(30, list), "more than 20000 values"),
        (b"\x80\x04" + b")" + b"\x85" * 49_000 + b".", "inside each other"),
        (b"\x80\x04" + b"]" * 20_000 + b"a" * 19_999 + b".", "inside each other"),
        (b"\x80\x04]\x94h\x00a.", "contain themselves"),
        (b"\x80\x04}\x94\x8c\x01ah\x00s.", "contain themselves"),
        (b"\x80\x04" + b"(" * 60_000 + b".", "more than 50000 pickle opcodes"),
        (b"\x80\x04]" + b"N" * 10 + b"." * 2, "bytes behind"),
        (b"\x80\x04](" + b"N" * 30_000 + b"e.", "more than 20000 values"),
        (b"\x80\x04" + bytes(restricted_pickle.MAX_BYTES), "bytes, more than 16777216"),
        (many_arrays(), "arrays and paths of more than"),
        (many_paths(), "arrays and paths of more than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_small_pickle_never_becomes_large_or_slow(data: bytes, found: str) -> None:
    tracemalloc.start()
    try:
        refused(data, found)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < restricted_pickle.MAX_MADE_BYTES + 40 * MIB


def test_deep_values_that_are_built_side_by_side_are_refused() -> None:
    value: Any = ()
    parts = []
    for _ in range(10):
        for _ in range(5):
            value = (value,)
        parts.append(value)
    refused(pickle.dumps(parts, 4), "inside each other")


# ------------------------------------------------------------------------------------------------- damage

PARAMETERS = dumped(
    PLAIN | {"probe": as_dill_writes(PROBE), "scale": np.float32(2.5), "path": pathlib.PurePosixPath("a")}
)


def read_or_refused(data: bytes) -> Any:
    """Return the value, or None for an error, which has to be a clear one."""
    try:
        return read_pickle(data, where=WHERE)
    except ArchiveError as err:
        message = str(err)
    assert message.startswith(WHERE)
    assert message.isprintable()
    return None


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, len(PARAMETERS) - 1), st.integers(0, 255), st.integers(0, 3), st.binary(max_size=4))
def test_damage_is_an_error_or_gives_plain_values(position: int, byte: int, cut: int, new: bytes) -> None:
    for data in (
        PARAMETERS[:position] + bytes([byte]) + PARAMETERS[position + 1 :],
        PARAMETERS[:position] + new + PARAMETERS[position + cut :],
        PARAMETERS[:position],
    ):
        value = read_or_refused(data)
        assert isinstance(value, dict | list | tuple | str | int | float | bytes | None | np.ndarray)


_ALLOWED = [
    opcode for opcode in pickletools.opcodes if opcode.name in set(restricted_pickle._STEPS) | restricted_pickle._VALUES
]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([opcode.code for opcode in _ALLOWED]), st.binary(max_size=3)), max_size=60))
def test_any_order_of_allowed_opcodes_is_an_error_or_gives_plain_values(opcodes: list[tuple[str, bytes]]) -> None:
    data = b"\x80\x04" + b"".join(code.encode("latin-1") + argument for code, argument in opcodes) + b"."
    value = read_or_refused(data)
    assert isinstance(value, dict | list | tuple | str | int | float | bytes | None | np.ndarray)

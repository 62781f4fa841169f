"""Pickles read as plain values, without unpickling.

What the TensorFlow reference saves beside its models (``params.dill``, ``manifest.dill``) and in its scans
(``_metadata``) are ordinary pickles of numbers, strings, lists and dictionaries, with a few names in between that stand
for NumPy's and TensorFlow's constructors. ``pickle`` would import and call whatever a file names, even an unpickler of
restricted names can be made to hash or copy without end, and NumPy's own constructors take shapes and types from the
file. So the opcodes are listed first, against a whitelist, and then played on a small stack machine of our own, in
which a name is only ever a label of ``_CONSTRUCTORS``: nothing is imported, no foreign attribute is set, and every
array is made here from a checked dtype, a checked shape and bytes of the right number.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

import numpy as np

from ptycho_torch.errors import PtychoError

MAX_BYTES = 16 * 2**20
"""Longest pickle: the probe is all that is large in one, 0.5 MB at N = 256."""

MAX_OPCODES = 50_000
"""A saved dictionary of 73 keys takes 330."""

MAX_NODES = 20_000
"""Values in the result, each counted as often as it can be reached."""

MAX_MADE_BYTES = 2 * MAX_BYTES
"""Of all arrays and paths that one pickle has made; those made of the same bytes count each time."""

MAX_TEXT_CHARACTERS = 2**16
MAX_PATH_CHARACTERS = 4096
MAX_PROTOCOL = 5
MAX_DEPTH = 32
MAX_AXES = 8
MAX_INTEGER_BYTES = 16
MAX_KEY_BITS = 63

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_PATHS = ("pathlib", "pathlib._local")
# Kind and size, as numpy.dtype reduces itself; objects, text and structures are not among them.
_DTYPES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))
PLAIN = "numbers, text, lists, dictionaries and NumPy arrays"


class RefusedPickleError(PtychoError, ValueError):
    """A pickle that is damaged, or asks for code.

    Attributes:
        found: what is there.
        suspicious: whether it may be made to run code.
    """

    def __init__(self, found: str, *, suspicious: bool) -> None:
        super().__init__(f"found {found}; expected {PLAIN}")
        self.found, self.suspicious = found, suspicious


def read_plain(data: bytes) -> Any:
    """Return what a pickle holds: plain values, arrays, and paths as text.

    A NumPy scalar becomes a Python number, an array of one text object that text, a TensorFlow tensor the array it was
    made from, an ordered dictionary a dictionary. Arrays belong to the caller and can be written to.

    Args:
        data: the pickle.

    Raises:
        RefusedPickleError: it is damaged, or it asks for anything but the constructors of arrays, scalars and paths.

    >>> import pickle
    >>> read_plain(pickle.dumps({"N": 64, "gridsize": 2}))
    {'N': 64, 'gridsize': 2}
    """
    if len(data) > MAX_BYTES:
        raise RefusedPickleError(f"{len(data)} bytes, more than {MAX_BYTES}", suspicious=False)
    opcodes = _listed_opcodes(data)
    try:
        return _plain(_Machine().run(opcodes))
    except _NotPlainError as err:
        raise RefusedPickleError(str(err), suspicious=True) from err
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as err:
        raise RefusedPickleError(f"a damaged pickle ({err})", suspicious=False) from err


class _NotPlainError(Exception):
    """What a pickle asks for and does not get."""


def _listed_opcodes(data: bytes) -> Sequence[tuple[str, Any]]:
    """Return every opcode with its argument, if all of them are allowed; nothing is built."""
    opcodes: list[tuple[str, Any]] = []
    found = ""
    try:
        argument: Any
        for opcode, argument, position in pickletools.genops(data):
            opcodes.append((opcode.name, argument))
            if opcode.name not in _STEPS and opcode.name not in _VALUES:
                found = f"the pickle opcode {opcode.name} at byte {position}"
            elif len(opcodes) > MAX_OPCODES:
                found = f"more than {MAX_OPCODES} pickle opcodes"
            elif opcode.name == "PROTO" and argument > MAX_PROTOCOL:
                found = f"pickle protocol {argument}"
            elif opcode.name in ("BINPUT", "LONG_BINPUT") and argument >= MAX_OPCODES:
                found = f"{opcode.name} to memo index {argument} at byte {position}"
            elif opcode.name == "LONG1" and not -(1 << 8 * MAX_INTEGER_BYTES) < argument < 1 << 8 * MAX_INTEGER_BYTES:
                found = f"an integer of more than {MAX_INTEGER_BYTES} bytes at byte {position}"
            elif isinstance(argument, str) and len(argument) > MAX_TEXT_CHARACTERS:
                found = f"text of {len(argument)} characters at byte {position}"
            elif opcode.name == "STOP" and position is not None and position != len(data) - 1:
                found = f"{len(data) - 1 - position} bytes behind the pickle"
            if found:
                break
    except Exception as err:
        # Whatever pickletools raises on hostile bytes becomes one error that gives its reason.
        raise RefusedPickleError(f"a damaged pickle ({err})", suspicious=False) from err
    if found:
        raise RefusedPickleError(found, suspicious=True)
    return opcodes


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that a pickle has looked up: a label, and nothing that could be called."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass
class _Dtype:
    """A dtype on its way: kind and size, then its byte order."""

    code: str
    order: str = "="

    def build(self, state: Any) -> None:
        """Take the state of ``numpy.dtype.__reduce__``, of which the byte order alone may be anything."""
        if not isinstance(state, tuple) or len(state) != 8 or state[0] != 3 or state[1] not in ("<", ">", "|", "="):
            raise _NotPlainError("a dtype whose state is none of NumPy's")
        if state[2:] != (None, None, None, -1, -1, 0):
            raise _NotPlainError("a dtype with fields, shape or metadata")
        self.order = state[1]

    def dtype(self) -> np.dtype:
        return np.dtype(self.order.replace("|", "=") + self.code)


class _ObjectDtype:
    """The dtype of objects, of which no array is ever made: only a single text is taken out of its state."""

    def build(self, state: Any) -> None:
        """Take the state of ``numpy.dtype(object).__reduce__``, which is always the same."""
        if state != (3, "|", None, None, None, -1, -1, 63):
            raise _NotPlainError("a dtype of objects whose state is none of NumPy's")


@dataclasses.dataclass
class _Array:
    """An array on its way: empty until its state comes. One of a single text object becomes that text."""

    machine: _Machine
    content: np.ndarray | str | None = None

    def build(self, state: Any) -> None:
        """Take the state of ``numpy.ndarray.__reduce__``: version, shape, dtype, Fortran order, bytes."""
        if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1 or self.content is not None:
            raise _NotPlainError("an array whose state is none of NumPy's")
        if isinstance(state[2], _ObjectDtype):
            self.content = self._text(state[4], state[1])
        else:
            self.content = self.machine.array(state[4], state[2], state[1], "F" if state[3] is True else "C")

    @staticmethod
    def _text(content: Any, shape: Any) -> str:
        if shape != () or not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], str):
            raise _NotPlainError("an array of objects that is not a single text")
        return content[0]


class _Machine:
    """Plays opcodes on a stack; values are plain, or stand for what is not built yet."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._made_bytes = 0

    def run(self, opcodes: Sequence[tuple[str, Any]]) -> Any:
        """Return what the last opcode leaves."""
        for name, argument in opcodes:
            step = _STEPS.get(name)
            if step is None:
                self._stack.append(argument)
            else:
                step(self, argument)
        if len(self._stack) != 1 or self._marks:
            raise ValueError(f"{len(self._stack)} values at the end")
        return self._stack[0]

    def array(self, content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        """Make an array of bytes, once dtype, shape and their number fit each other."""
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
            raise _NotPlainError("an array that is not made of a dtype and bytes")
        if not isinstance(shape, tuple) or len(shape) > MAX_AXES or not all(_is_length(length) for length in shape):
            raise _NotPlainError("an array whose shape is no tuple of a few lengths")
        numpy_dtype = dtype.dtype()
        if math.prod(shape) * numpy_dtype.itemsize != len(content):
            raise _NotPlainError(f"an array of shape {shape} of {numpy_dtype} in {len(content)} bytes")
        self.claim(len(content))
        return np.ndarray(shape, numpy_dtype, bytearray(content), order=order)

    def claim(self, count: int) -> None:
        """Count the bytes of something new: a pickle of few bytes can name the same content again and again."""
        self._made_bytes += count
        if self._made_bytes > MAX_MADE_BYTES:
            raise _NotPlainError(f"arrays and paths of more than {MAX_MADE_BYTES} bytes")

    # Each step below is an opcode; pickletools says what they do.

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("an opcode without its values")
        return self._stack.pop()

    def _pop_marked(self) -> list[Any]:
        if not self._marks:
            raise ValueError("an opcode without its mark")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise _NotPlainError(f"values for something that is no {kind.__name__}")
        return self._stack[-1]

    def nothing(self, argument: Any) -> None:
        """PROTO, FRAME and STOP say nothing of values."""

    def mark(self, argument: Any) -> None:
        self._marks.append(len(self._stack))

    def put(self, argument: int | None) -> None:
        value = self._pop()
        self._memo[len(self._memo) if argument is None else argument] = value
        self._stack.append(value)

    def get(self, argument: int) -> None:
        self._stack.append(self._memo[argument])

    def tuple_of(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(values)))

    def tuple_marked(self, argument: Any) -> None:
        self._stack.append(tuple(self._pop_marked()))

    def append(self, argument: Any) -> None:
        value = self._pop()
        self._top(list).append(value)

    def appends(self, argument: Any) -> None:
        values = self._pop_marked()
        self._top(list).extend(values)

    def set_item(self, argument: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set(key, value)

    def set_items(self, argument: Any) -> None:
        values = self._pop_marked()
        if len(values) % 2:
            raise ValueError("a key without its value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self._set(key, value)

    def _set(self, key: Any, value: Any) -> None:
        # Text and numbers alone: the hash of nested tuples can take for ever.
        if not isinstance(key, str | int | float | bytes | None):
            raise _NotPlainError(f"a key of type {type(key).__name__}")
        # Thousands of longer numbers can be chosen to have one hash, and each is then compared with all before it.
        if isinstance(key, int) and key.bit_length() > MAX_KEY_BITS:
            raise _NotPlainError(f"a number of {key.bit_length()} bits as a key")
        self._top(dict)[key] = value

    def global_named(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._look_up(module, name)

    def global_on_stack(self, argument: Any) -> None:
        name, module = self._pop(), self._pop()
        self._look_up(module, name)

    def _look_up(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        if (module, name) not in _CONSTRUCTORS:
            raise _NotPlainError(f"the name {module[:80]}.{name[:80]}, which is code")
        self._stack.append(_Global(module, name))

    def reduce(self, argument: Any) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise _NotPlainError("a call of something that is no constructor")
        try:
            value = _CONSTRUCTORS[function.module, function.name](self, *arguments)
        except TypeError as err:
            raise _NotPlainError(f"{function} with {len(arguments)} arguments") from err
        self._stack.append(value)

    def build(self, argument: Any) -> None:
        state = self._pop()
        value = self._stack[-1] if self._stack else None
        if not isinstance(value, _Dtype | _ObjectDtype | _Array):
            raise _NotPlainError(f"a state for a {type(value).__name__}")
        value.build(state)


_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = MappingProxyType(
    {
        **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Machine.nothing),
        "MARK": _Machine.mark,
        "NONE": lambda machine, _: machine._stack.append(None),
        "NEWTRUE": lambda machine, _: machine._stack.append(True),
        "NEWFALSE": lambda machine, _: machine._stack.append(False),
        "EMPTY_TUPLE": lambda machine, _: machine._stack.append(()),
        "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
        "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
        "TUPLE1": lambda machine, _: machine.tuple_of(1),
        "TUPLE2": lambda machine, _: machine.tuple_of(2),
        "TUPLE3": lambda machine, _: machine.tuple_of(3),
        "TUPLE": _Machine.tuple_marked,
        "APPEND": _Machine.append,
        "APPENDS": _Machine.appends,
        "SETITEM": _Machine.set_item,
        "SETITEMS": _Machine.set_items,
        **dict.fromkeys(("MEMOIZE", "BINPUT", "LONG_BINPUT"), _Machine.put),
        **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
        "GLOBAL": _Machine.global_named,
        "STACK_GLOBAL": _Machine.global_on_stack,
        "REDUCE": _Machine.reduce,
        "BUILD": _Machine.build,
    }
)
"""What opcodes do to the stack."""

_VALUES = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE"))
_VALUES |= {"SHORT_BINBYTES", "BINBYTES", "BYTEARRAY8"}
"""Opcodes that put their own argument on the stack. Those in neither table are refused."""


# --------------------------------------------------------------------------------------- stand-ins for constructors


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BYTES


def _tensor(machine: _Machine, value: Any) -> _Array:
    """``tensorflow.convert_to_tensor`` of one array."""
    if not isinstance(value, _Array):
        raise _NotPlainError("a tensor that is not made of an array")
    return value


def _dtype(machine: _Machine, code: Any, align: Any = False, copy: Any = True) -> _Dtype | _ObjectDtype:
    """``numpy.dtype``."""
    if not isinstance(code, str):
        raise _NotPlainError("a dtype without a name")
    if code == "O8":
        return _ObjectDtype()
    if code not in _DTYPES:
        raise _NotPlainError(f"the dtype {code[:80]}")
    return _Dtype(code)


def _reconstruct(machine: _Machine, kind: Any, shape: Any, code: Any) -> _Array:
    """``numpy.core.multiarray._reconstruct``: an empty array, whose state follows."""
    if kind != _Global("numpy", "ndarray") or shape != (0,) or code not in (b"b", "b"):
        raise _NotPlainError("an array of a foreign class")
    return _Array(machine)


def _create_array(machine: _Machine, function: Any, arguments: Any, state: Any, attributes: Any = None) -> _Array:
    """``dill._dill._create_array``: an array with its state, and attributes of a subclass, which none of ours has."""
    reconstructs = isinstance(function, _Global) and function.name == "_reconstruct"
    if not reconstructs or not isinstance(arguments, tuple) or attributes not in (None, {}):
        raise _NotPlainError("an array of a foreign class")
    array = _reconstruct(machine, *arguments)
    array.build(state)
    return array


def _scalar(machine: _Machine, dtype: Any, content: Any) -> Any:
    """``numpy.core.multiarray.scalar``, as a Python number."""
    return machine.array(content, dtype, (), "C").item()


def _from_buffer(machine: _Machine, content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """``numpy.core.numeric._frombuffer``, which protocol 5 writes."""
    return _Array(machine, machine.array(content, dtype, shape, order))


def _path(kind: type[PurePosixPath | PureWindowsPath]) -> Callable[..., str]:
    """``pathlib.PosixPath`` or ``pathlib.WindowsPath``, as text."""

    def path(machine: _Machine, *parts: Any) -> str:
        if not all(isinstance(part, str) for part in parts) or sum(map(len, parts)) > MAX_PATH_CHARACTERS:
            raise _NotPlainError("a path that is not made of a few words")
        machine.claim(4 * MAX_PATH_CHARACTERS)
        return str(kind(*parts))

    return path


def _ordered(machine: _Machine) -> dict[Any, Any]:
    """``collections.OrderedDict``, whose items follow."""
    return {}


def _class(machine: _Machine, *arguments: Any) -> Any:
    """``numpy.ndarray``, which is named but never called."""
    raise _NotPlainError("a call of numpy.ndarray")


_CONSTRUCTORS: Mapping[tuple[str, str], Callable[..., Any]] = MappingProxyType(
    {
        ("tensorflow.python.framework.ops", "convert_to_tensor"): _tensor,
        ("dill._dill", "_create_array"): _create_array,
        ("numpy", "ndarray"): _class,
        ("numpy", "dtype"): _dtype,
        ("collections", "OrderedDict"): _ordered,
        **{(module, "_reconstruct"): _reconstruct for module in _MULTIARRAY},
        **{(module, "scalar"): _scalar for module in _MULTIARRAY},
        **{(module, "_frombuffer"): _from_buffer for module in ("numpy.core.numeric", "numpy._core.numeric")},
        **{(module, name): _path(PurePosixPath) for module in _PATHS for name in ("PosixPath", "PurePosixPath")},
        **{(module, name): _path(PureWindowsPath) for module in _PATHS for name in ("WindowsPath", "PureWindowsPath")},
    }
)
"""Every name that a pickle may look up, with the stand-in that is called for it."""


# ------------------------------------------------------------------------------------------------------ the result


def _plain(root: Any) -> Any:
    """Return the result with all stand-ins resolved, if it is finite and as small as it looks."""
    resolved: dict[int, tuple[Any, int, int]] = {}
    open_ids: set[int] = set()

    def visit(value: Any, depth: int) -> tuple[Any, int, int]:
        """Return the plain value, how many values can be reached through it, and how deep they lie."""
        if isinstance(value, str | int | float | complex | bytes | None):
            return value, 1, 0
        if isinstance(value, bytearray):
            return bytes(value), 1, 0
        if isinstance(value, _Array):
            if value.content is None:
                raise _NotPlainError("an array without content")
            return value.content, 1, 0
        if not isinstance(value, list | tuple | dict):
            raise _NotPlainError(f"{value} as a value" if isinstance(value, _Global) else "a dtype as a value")
        if id(value) in resolved:
            return resolved[id(value)]
        if id(value) in open_ids or depth > MAX_DEPTH:
            raise _NotPlainError("values that contain themselves, or are too deep inside each other")
        open_ids.add(id(value))
        parts = [visit(part, depth + 1) for part in (value.values() if isinstance(value, dict) else value)]
        contents = [part for part, _, _ in parts]
        nodes = 1 + sum(count for _, count, _ in parts)
        height = 1 + max((below for _, _, below in parts), default=0)
        if nodes > MAX_NODES or height > MAX_DEPTH:
            raise _NotPlainError(f"more than {MAX_NODES} values, or more than {MAX_DEPTH} inside each other")
        plain = dict(zip(value, contents, strict=True)) if isinstance(value, dict) else type(value)(contents)
        open_ids.discard(id(value))
        resolved[id(value)] = plain, nodes, height
        return resolved[id(value)]

    return visit(root, 0)[0]

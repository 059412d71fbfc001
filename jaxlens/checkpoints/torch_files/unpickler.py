"""Reads the pickle in a PyTorch file without calling anything that the pickle names.

A pickle is a program for a stack machine, and may call any function of any module. This machine has the instructions
that Python's pickler writes (protocols 2 to 5, see `pickletools` and PEP 307, 3154 and 574). Names are looked up in the
tables below, which contain the names that torch's `weights_only=True` accepts. Any other name is an error.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxlens.checkpoints.torch_files.dtypes import DTYPES, STORAGES, TORCH_NAMES
from jaxlens.errors import CheckpointError


@dataclass(frozen=True)
class Dtype:
    """A dtype of torch, or the class of its storages. `name` is the name in safetensors."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The values of one or more tensors: the member `data/{key}` of the file, with `size` bytes."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage. `offset` and `strides` count values."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Other:
    """A value that is no tensor, dict, list, tuple, string or number. Only its type is read."""

    type: str


def rebuild_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], requires_grad: bool = False,
    hooks: Any = None, metadata: Any = None, *, dtype: Dtype | None = None,
) -> StoredTensor:  # fmt: skip
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise CheckpointError("a tensor is not made of a storage, a shape and strides; download the file again")
    if len(shape) != len(strides) or len(shape) > 32:
        raise CheckpointError(f"a tensor has {len(shape)} axes and {len(strides)} strides; download the file again")
    if invalid := [n for n in (offset, *shape, *strides) if type(n) is not int or not 0 <= n < 2**63]:
        raise CheckpointError(f"a tensor has an axis, a stride or an offset of {_short(invalid[0])}; expected integers")
    if metadata:  # a view whose values are conjugated or negated when they are read
        raise CheckpointError(f"a tensor is a view with {_short(metadata)}; save a copy of it (`resolve_neg`)")
    return StoredTensor(storage, storage.dtype if dtype is None else dtype.name, offset, shape, strides)


def rebuild_tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any,
                      metadata: Any = None) -> StoredTensor:  # fmt: skip
    if not isinstance(dtype, Dtype):
        raise CheckpointError(f"the dtype of a tensor is {_short(dtype)}; expected a dtype of torch")
    return rebuild_tensor(storage, offset, shape, strides, grad, hooks, metadata, dtype=dtype)


def rebuild_parameter(data: Any, requires_grad: Any = None, hooks: Any = None, state: Any = None) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise CheckpointError(f"a parameter is {_short(data)}; expected a tensor")
    return data


def rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor that has attributes, which are not read."""
    if function not in TENSORS or kind not in TENSOR_CLASSES:
        raise CheckpointError(
            f"a tensor has the class {_short(kind)}; save a plain tensor (`as_subclass(torch.Tensor)`)"
        )
    return function(*args)


def ordered_dict() -> dict[Any, Any]:
    return {}


TENSORS = (rebuild_tensor, rebuild_tensor_v3, rebuild_parameter)
TENSOR_CLASSES = tuple(map(Other, ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")))
NAMES: dict[str, Any] = {
    "collections.OrderedDict": ordered_dict,
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": rebuild_from_type,
    **{kind.type: kind for kind in TENSOR_CLASSES},
    **{f"torch.{name}": Dtype(dtype) for name, dtype in TORCH_NAMES.items()},
    **{f"torch.{cuda}{name}Storage": Dtype(dtype) for name, dtype in STORAGES.items() for cuda in ("", "cuda.")},
    **{f"torch.storage.{name}Storage": Dtype("U8") for name in ("Untyped", "_Untyped")},
}
"""What a name in the pickle stands for: a function of this file, or a value."""

OTHERS = {
    "torch.Size", "torch.device", "torch.serialization._get_layout", "collections.Counter", "_codecs.encode",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "bytearray", "complex")),
}  # fmt: skip
"""Classes and functions whose values contain no weights. Calling one of them gives an `Other`."""

CONSTANTS = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_SET": Other("set"),
}  # fmt: skip
WITH_VALUE = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
"""Instructions that push the value after them."""


class Unpickler:
    """Runs a pickle. `value` is its result, made of dicts, lists, tuples, numbers, strings and the classes above."""

    def __init__(self, data: bytes):
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(data):
            self.run(opcode.name, argument)
        (self.value,) = self.stack

    def run(self, opcode: str, argument: Any) -> None:
        if opcode in WITH_VALUE:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode in INSTRUCTIONS:
            INSTRUCTIONS[opcode](self)
        elif opcode == "GLOBAL":
            self.stack.append(look_up(argument.replace(" ", ".", 1)))
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise CheckpointError(f"its pickle contains {opcode}, which torch.save does not write; download it again")

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        """The values above the last mark."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def push_tuple(self, count: int | None = None) -> None:
        values = self.pop_marked() if count is None else [self.pop() for _ in range(count)][::-1]
        self.stack.append(tuple(values))

    def append(self, values: list[Any]) -> None:
        """Adds values to a list. The values of an `Other`, such as a set, are dropped."""
        if not isinstance(self.stack[-1], Other):
            _expect(self.stack[-1], list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Adds keys and values to a dict."""
        if isinstance(self.stack[-1], Other):
            return
        items = _expect(self.stack[-1], dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int, float, bool, type(None), bytes):  # the hash of a deep tuple could crash
                raise CheckpointError(f"a dict has the key {_short(key)}; expected a string or a number")
            items[key] = value

    def call(self) -> None:
        arguments, function = _expect(self.pop(), tuple), self.pop()
        if isinstance(function, Other):
            self.stack.append(function)
        elif callable(function):
            self.stack.append(function(*arguments))
        else:
            raise CheckpointError(f"its pickle calls {_short(function)}, which is no function; download it again")

    def build(self) -> None:
        """Drops the attributes of a dict: torch's state dicts contain the versions of their modules."""
        self.pop()
        if not isinstance(self.stack[-1], dict | Other | StoredTensor):
            raise CheckpointError(f"its pickle sets attributes of {_short(self.stack[-1])}; download it again")

    def look_up_on_stack(self) -> None:
        name, module = _expect(self.pop(), str), _expect(self.pop(), str)
        self.stack.append(look_up(f"{module}.{name}"))

    def storage(self) -> None:
        """A storage from its persistent id, ("storage", class, key, device, number of values)."""
        match self.pop():
            case ("storage", Dtype(dtype), str(key), str(), int(count)) if 0 <= count < 2**60:
                self.stack.append(Storage(key, dtype, count * DTYPES[dtype].itemsize))
            case other:
                raise CheckpointError(f"it refers to {_short(other)}; expected a storage; download it again")


INSTRUCTIONS: dict[str, Callable[[Unpickler], None]] = {
    "MARK": Unpickler.mark,
    "TUPLE": Unpickler.push_tuple,
    "TUPLE1": lambda machine: machine.push_tuple(1),
    "TUPLE2": lambda machine: machine.push_tuple(2),
    "TUPLE3": lambda machine: machine.push_tuple(3),
    "EMPTY_DICT": lambda machine: machine.stack.append({}),
    "EMPTY_LIST": lambda machine: machine.stack.append([]),
    "APPEND": lambda machine: machine.append([machine.pop()]),
    "APPENDS": lambda machine: machine.append(machine.pop_marked()),
    "ADDITEMS": lambda machine: machine.append(machine.pop_marked()),
    "SETITEM": lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine: machine.set_items(machine.pop_marked()),
    "REDUCE": Unpickler.call,
    "NEWOBJ": Unpickler.call,
    "BUILD": Unpickler.build,
    "STACK_GLOBAL": Unpickler.look_up_on_stack,
    "BINPERSID": Unpickler.storage,
}


def look_up(name: str) -> Any:
    """The function or value for a name in the pickle. Raises a CheckpointError for any other name."""
    if name in NAMES:
        return NAMES[name]
    if name in OTHERS:
        return Other(name)
    problem = f"its pickle names {_short(name)}, which is no tensor, and jaxlens runs no code from files"
    remedy = (
        "load it with torch.load(file, weights_only=False), and save only the tensors: torch.save(state_dict, file)"
    )
    raise CheckpointError(f"{problem}; if you trust the file, {remedy}")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise CheckpointError(f"its pickle contains {_short(value)}; expected a {kind.__name__}; download it again")
    return value


def _short(value: Any) -> str:
    """The start of a string or number, or the type of another value, which may be large or refer to itself."""
    if isinstance(value, Other | Dtype):
        return value.type if isinstance(value, Other) else value.name
    if type(value) in (str, bool, float, bytes) or (type(value) is int and abs(value) < 2**64):
        return f"{value!r:.100}"
    return f"an integer of {value.bit_length()} bits" if type(value) is int else f"a {type(value).__name__}"

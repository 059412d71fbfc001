"""What a function computes, as a hash: its source, and the values that it reads from elsewhere.

A function of Python may read anything. What is followed: closures, defaults, bound arguments, globals, attributes of
objects, of classes and of modules, also in functions that it calls, unless they belong to an installed package.
"""

import builtins
import dis
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens._jax import from_torch, is_torch_tensor, on_host

WHOLE = 1 << 16
"""Larger arrays are added up on their device. Smaller ones are hashed."""

Code = types.CodeType


class Fingerprint(NamedTuple):
    """A hash of what a function computes. It `is_sure` if nothing that the function may read is missing in it."""

    sha256: str
    is_sure: bool


def fingerprint(function: Callable) -> str:
    """A hash of the source of a function and of what it reads.

    It is the same in another process. Two functions with different fingerprints may compute the same, but functions
    that compute something else because a number or an array has changed have different ones.

    Example:
        >>> def times(factor):
        ...     return lambda value, hook: value * factor
        >>> fingerprint(times(2)) == fingerprint(times(2)), fingerprint(times(2)) == fingerprint(times(3))
        (True, False)
    """
    return fingerprint_of(function).sha256


def fingerprint_of(function: Callable) -> Fingerprint:
    """The fingerprint of a function, and whether it is sure."""
    reader, digest = _Reader(), hashlib.sha256()
    try:
        parts, is_sure = reader.parts(function), reader.is_sure
    except RecursionError:  # values that hold each other a thousand times
        parts, is_sure = [str(_source(function)).encode()], False
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return Fingerprint(digest.hexdigest(), is_sure)


class AsOfNow:
    """A function with what it reads now. It equals another one if that is of the same function and reads the same.

    JAX traces a function once, whatever becomes of the globals and attributes that it reads, and finds its program by
    equality. So a function as of now is traced again after they have changed.
    """

    def __init__(self, function: Callable):
        sha256, is_sure = fingerprint_of(function)
        self.function, self._key = function, (function, sha256) if is_sure and _is_hashable(function) else object()
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **options)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, AsOfNow) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def sample(array: Any) -> bytes:
    """The shape and the dtype of an array, and a few values along each axis."""
    steps = [np.linspace(0, size - 1, min(size, 5)).astype(int) for size in array.shape]
    values = on_host(array[np.ix_(*steps)] if array.ndim else array)
    return f"{array.shape} {array.dtype}".encode() + values.tobytes()


class _Reader:
    """Reads values. It numbers those that it has seen, because values may hold each other."""

    def __init__(self):
        self.is_sure = True
        self._seen: dict[int, tuple[int, Any]] = {}  # the values too, so that no other one gets their id

    def parts(self, value: Any) -> list[bytes]:
        """The bytes of a value, and of what it holds or reads."""
        if value is None or isinstance(value, str | bytes | int | float | complex | np.dtype) or value is ...:
            return [f"{type(value).__name__} {value!r}".encode()]
        if isinstance(value, jax.core.Tracer):
            self.is_sure = False
            return [b"traced"]
        if is_torch_tensor(value):
            value = from_torch(value)
        if isinstance(value, np.ndarray | np.generic | jax.Array) and value.dtype != object:
            return _of_array(value)
        if id(value) in self._seen:
            return [b"seen %d" % self._seen[id(value)][0]]
        self._seen[id(value)] = len(self._seen), value
        name = f"{type(value).__qualname__} {getattr(value, '__qualname__', '')}".encode()
        if isinstance(value, set | frozenset):  # their order differs between processes
            return [name, *sorted(b"".join(self.parts(each)) for each in value)]
        return [name, *(part for held in self._held(value) for part in self.parts(held))]

    def _held(self, value: Any) -> Iterable[Any]:
        """What a container holds, what a function reads, or the attributes of an object."""
        if isinstance(value, Mapping):
            return [each for item in value.items() for each in item]
        if isinstance(value, list | tuple | range | slice):
            return value.__reduce__()[1] if isinstance(value, slice) else list(value)
        if isinstance(value, AsOfNow):
            return [value.function]
        if isinstance(value, functools.partial):
            return [value.func, value.args, value.keywords]
        if isinstance(value, types.MethodType):
            return [value.__func__, value.__self__]
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, types.ModuleType):
            return []  # what functions read from it is in `_of_function`
        if isinstance(value, type):
            return [] if _is_of_package(value) else [_source(value), _data(vars(value)), value.__bases__]
        if isinstance(value, property | staticmethod | classmethod):
            return [getattr(value, "fget", None), getattr(value, "fset", None), getattr(value, "__func__", None)]
        if isinstance(value, types.BuiltinFunctionType | np.ufunc):
            owner = getattr(value, "__self__", None)
            return [] if isinstance(owner, types.ModuleType | None) else [owner]
        if (wrapped := getattr(value, "__wrapped__", None)) is not None and not hasattr(value, "__dict__"):
            return [wrapped]
        return self._of_object(value)

    def _of_function(self, function: types.FunctionType) -> list[Any]:
        closure = [_content(cell) for cell in function.__closure__ or ()]
        if _is_of_package(function):
            return [closure, function.__defaults__, function.__kwdefaults__]
        read, attributes = _names(function.__code__)
        read_globals = {name: function.__globals__[name] for name in read if name in function.__globals__}
        modules = [each for each in (*read_globals.values(), *closure) if isinstance(each, types.ModuleType)]
        of_modules = [
            {name: vars(module)[name] for name in attributes if name in vars(module)}
            for module in modules
            if not _is_package(module.__name__)
        ]
        return [
            _source(function), function.__defaults__, function.__kwdefaults__, closure, read_globals, of_modules,
            getattr(function, "__wrapped__", None),
        ]  # fmt: skip

    def _of_object(self, value: Any) -> list[Any]:
        """The class of an object, the leaves of a pytree, and the attributes."""
        leaves, structure = jax.tree.flatten(value)
        is_tree = not (len(leaves) == 1 and leaves[0] is value)
        attributes = getattr(value, "__dict__", None)
        slots = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
        if is_tree:
            text = str(structure)
            self.is_sure &= " at 0x" not in text
            return [type(value), re.sub(r" at 0x\w+", "", text), leaves]
        if attributes is None and not slots:
            self.is_sure &= _is_of_package(type(value)) and type(value).__module__.startswith("jaxlens")
        return [type(value), getattr(value, "__wrapped__", None), attributes, slots]


def _of_array(array: Any) -> list[bytes]:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return [str(array.dtype).encode(), *_of_array(jax.random.key_data(array))]
    shape = f"{array.shape} {array.dtype}".encode()
    if array.size <= WHOLE or array.dtype.itemsize > 8:
        return [shape, on_host(array).tobytes()]
    return [shape, np.asarray(_sums(jnp.asarray(array))).tobytes(), sample(array)]


@jax.jit
def _sums(array: jax.Array) -> jax.Array:
    """Two sums modulo 2^32 of the bits of all values, with weights that depend on their place."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
    if array.dtype == bool or jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = array.astype(jnp.uint8) if array.dtype == bool else jnp.stack([array.real, array.imag])
    bits = jax.lax.bitcast_convert_type(array, unsigned[array.dtype.itemsize]).astype(jnp.uint32).reshape(-1)
    place = jax.lax.iota(jnp.uint32, bits.size)
    mixed = (bits ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.stack([jnp.sum(mixed ^ (mixed >> 16)), jnp.sum(bits * (2 * place + 1))])


def _names(code: Code) -> tuple[list[str], list[str]]:
    """The globals that code reads, that of the functions in it too, and the attributes."""
    found: dict[str, list[str]] = {"GLOBAL": [], "ATTR": []}
    for instruction in dis.get_instructions(code):
        kind = "GLOBAL" if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") else "ATTR"
        if kind == "GLOBAL" or instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            found[kind].append(instruction.argval)
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, Code)]
    for read, attributes in inner:
        found["GLOBAL"] += read
        found["ATTR"] += attributes
    return list(dict.fromkeys(found["GLOBAL"])), list(dict.fromkeys(found["ATTR"]))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable of the closure has no value yet
        return None


def _data(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a class, without those that Python gives it."""
    return {
        name: value for name, value in attributes.items() if not (name.startswith("__") and name.endswith("__"))
    }  # fmt: skip


def _slots(cls: type) -> list[str]:
    names = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    return [name for each in names for name in ([each] if isinstance(each, str) else each) if name != "__dict__"]


def _is_of_package(value: Any) -> bool:
    """Whether a function or a class belongs to Python, to jaxlens or to an installed package."""
    return _is_package(getattr(value, "__module__", None) or builtins.__name__)


@functools.cache
def _is_package(module: str) -> bool:
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names or root in ("builtins", "jaxlens"):
        return root != "__main__"
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def _source(value: Any) -> str | None:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # typed at a prompt, or not written in Python
        code = getattr(value, "__code__", None)
        name = getattr(value, "__qualname__", None)
        return name if code is None else f"{name} {_bytecode(code)}"


def _bytecode(code: Code) -> str:
    constants = [_bytecode(each) if isinstance(each, Code) else repr(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"

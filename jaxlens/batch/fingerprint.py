"""What a function computes, as a hash: its source, and the values that it reads from elsewhere.

A function of Python may read anything. What is followed: closures, defaults, bound arguments, globals, attributes of
objects, of classes and of modules, also in functions that it calls, unless they belong to an installed package.
"""

import collections
import dataclasses
import datetime
import decimal
import dis
import enum
import fractions
import functools
import hashlib
import inspect
import logging
import os
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
        if type(value) in PLAIN or value is ... or value is NotImplemented:
            return [f"{type(value).__name__} {value!r}".encode()]
        if (array := self._as_array(value)) is not None:
            return array
        if id(value) in self._seen:
            return [b"seen %d" % self._seen[id(value)][0]]
        self._seen[id(value)] = len(self._seen), value
        name = f"{type(value).__qualname__} {getattr(value, '__qualname__', '')}".encode()
        if isinstance(value, set | frozenset):
            return [name, *sorted(map(self._alone, value))]
        return [name, *(part for held in self._held(value) for part in self.parts(held)), b"end"]

    def _alone(self, value: Any) -> bytes:
        """The bytes of a member of a set, whose order differs between processes."""
        reader = _Reader()
        parts = reader.parts(value)
        self.is_sure &= reader.is_sure
        return b"".join(parts)

    def _as_array(self, value: Any) -> list[bytes] | None:
        """The bytes of an array, or None for another value."""
        if isinstance(value, jax.core.Tracer):
            self.is_sure = False
            return [b"traced"]
        try:
            value = from_torch(value) if is_torch_tensor(value) else value
            is_array = isinstance(value, np.ndarray | np.generic | jax.Array) and value.dtype != object
            return _of_array(value) if is_array else None
        except Exception:  # a deleted array, and dtypes and layouts that cannot be read
            self.is_sure = False
            return [f"{type(value)} {getattr(value, 'shape', None)}".encode()]

    def _held(self, value: Any) -> Iterable[Any]:
        """What a container holds, what a function reads, or the attributes of an object."""
        if isinstance(value, AsOfNow):
            return [value.function]
        if isinstance(value, jax.stages.Wrapped):
            return [value.__wrapped__]
        if isinstance(value, functools.partial):
            return [value.func, value.args, value.keywords]
        if isinstance(value, types.MethodType):
            return [value.__func__, value.__self__]
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, types.ModuleType):
            self.is_sure &= _is_package(value.__name__)  # which of its attributes are read is not known here
            return []
        if isinstance(value, type):
            return [] if _is_of_package(value) else [_source(value), _of_class(value), value.__bases__]
        if isinstance(value, property | staticmethod | classmethod):
            return [getattr(value, name, None) for name in ("fget", "fset", "__func__")]
        if isinstance(value, types.BuiltinFunctionType):
            return [] if isinstance(value.__self__, types.ModuleType | None) else [value.__self__]
        if isinstance(value, enum.Enum):
            return [value.name, value.value]
        return self._of_object(value)

    def _of_function(self, function: types.FunctionType) -> list[Any]:
        closure = [_content(cell) for cell in function.__closure__ or ()]
        if _is_of_package(function):
            return [closure, function.__defaults__, function.__kwdefaults__]
        read = _names(function.__code__)
        values = {name: function.__globals__[name] for name in read.globals if name in function.__globals__}
        imported = [sys.modules[name] for name in read.imports if name in sys.modules]
        found = [*values.values(), *imported, *closure, *(function.__defaults__ or ())]
        modules = [each for each in found if isinstance(each, types.ModuleType)]
        others = {name: value for name, value in values.items() if not isinstance(value, types.ModuleType)}
        closure = [value for value in closure if not isinstance(value, types.ModuleType)]
        defaults = [value for value in function.__defaults__ or () if not isinstance(value, types.ModuleType)]
        attributes = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
        return [
            _source(function), _bytecode(function.__code__), closure, defaults, function.__kwdefaults__, others,
            _of_modules(modules, read.attributes), attributes, getattr(function, "__wrapped__", None),
        ]  # fmt: skip

    def _of_object(self, value: Any) -> list[Any]:
        """The contents of a container, the leaves of a pytree, the attributes of an object, and its class."""
        cls, contents = type(value), []
        if cls in (dict, list, tuple):  # the class says nothing more
            return [each for item in value.items() for each in item] if cls is dict else value
        if isinstance(value, Mapping):
            contents = [each for item in value.items() for each in item]
        elif isinstance(value, list | tuple | collections.deque):
            contents = list(value)
        elif isinstance(value, str | bytes | int | float | complex | os.PathLike | slice | range) or cls in IMMUTABLE:
            return [repr(value), cls, None if isinstance(value, os.PathLike) else getattr(value, "__dict__", None)]
        elif not dataclasses.is_dataclass(value):
            leaves, structure = jax.tree.flatten(value)
            if not (len(leaves) == 1 and leaves[0] is value):
                self.is_sure &= " at 0x" not in str(structure)
                return [cls, _without_addresses(structure), leaves]
        wrapped, attributes = getattr(value, "__wrapped__", None), getattr(value, "__dict__", None)
        slots = {name: getattr(value, name) for name in _slots(cls) if hasattr(value, name)}
        root = cls.__module__.partition(".")[0]
        if isinstance(value, logging.Logger) or (root in ("jax", "jaxlib") and wrapped is None):
            return [cls, _without_addresses(value)]
        if not (contents or attributes or slots or wrapped) and cls is not collections.deque:
            self.is_sure &= root == "jaxlens" or not _is_of_package(cls)  # others may hold what Python does not show
            return [cls, _without_addresses(value)]
        return [cls, contents, wrapped, attributes, slots]


PLAIN = (type(None), bool, int, float, complex, str, bytes)
IMMUTABLE = (decimal.Decimal, fractions.Fraction, re.Pattern, datetime.date, datetime.datetime, datetime.timedelta)


def _without_addresses(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _of_array(array: Any) -> list[bytes]:
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return [str(array.dtype).encode(), *_of_array(jax.random.key_data(array))]
    shape = f"{array.shape} {array.dtype}".encode()
    if isinstance(array, jax.Array) and array.size > WHOLE and array.dtype.itemsize <= 8:
        return [shape, np.asarray(_sums(array)).tobytes(), sample(array)]
    values = np.ascontiguousarray(on_host(array)).reshape(-1)
    return [shape, hashlib.sha256(values.view(np.uint8)).digest() if values.size else b""]


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


class _Names(NamedTuple):
    globals: list[str]
    attributes: list[str]
    imports: list[str]


def _names(code: Code) -> _Names:
    """The globals, attributes and modules that code reads, and that functions in it read."""
    found = _Names([], [], [])
    for instruction in dis.get_instructions(code):
        match instruction.opname:
            case "LOAD_GLOBAL" | "LOAD_NAME":
                found.globals.append(instruction.argval)
            case "LOAD_ATTR" | "LOAD_METHOD" | "IMPORT_FROM":
                found.attributes.append(instruction.argval)
            case "IMPORT_NAME":
                found.imports.append(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, Code):
            for mine, inner in zip(found, _names(constant), strict=True):
                mine += inner
    return _Names(*(list(dict.fromkeys(names)) for names in found))


def _of_modules(modules: Iterable[types.ModuleType], attributes: Iterable[str]) -> dict[str, Any]:
    """The attributes that code reads from modules, and from modules in them. Installed packages do not change."""
    found: dict[str, Any] = {}
    for module in modules:
        if _is_package(module.__name__) or module.__name__ in found:
            continue
        read = {name: vars(module)[name] for name in attributes if name in vars(module)}
        found[module.__name__] = {n: value for n, value in read.items() if not isinstance(value, types.ModuleType)}
        inner = [value for value in read.values() if isinstance(value, types.ModuleType)]
        found |= {n: of for n, of in _of_modules(inner, attributes).items() if n not in found}
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable of the closure has no value yet
        return None


def _of_class(cls: type) -> dict[str, Any]:
    """The attributes of a class, without those that Python or a decorator makes."""

    def is_written(name: str, value: Any) -> bool:
        if inspect.isdatadescriptor(value) and not isinstance(value, property) and _is_of_package(type(value)):
            return False  # such as a slot
        if not (name.startswith("__") and name.endswith("__")):
            return True
        return isinstance(value, types.FunctionType) and not value.__code__.co_filename.startswith("<string")

    return {name: value for name, value in vars(cls).items() if is_written(name, value)}


def _slots(cls: type) -> list[str]:
    """The names of the slots, as Python stores them."""
    found = []
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            is_private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{base.__name__.lstrip('_')}{name}" if is_private else name)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _is_of_package(value: Any) -> bool:
    """Whether a function or a class belongs to Python, to jaxlens or to an installed package."""
    if isinstance(value, types.FunctionType):  # its `__module__` may be that of another function, which it wraps
        return _is_package(value.__globals__.get("__name__") or "__main__")
    return _is_package(value.__module__)


@functools.cache
def _is_package(module: str) -> bool:
    root = module.partition(".")[0]
    if root == "__main__":
        return False
    if root in sys.stdlib_module_names or root in ("builtins", "jaxlens"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def _source(value: Any) -> str | None:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # typed at a prompt, or not written in Python
        return getattr(value, "__qualname__", None)


def _bytecode(code: Code) -> str:
    """Tells functions in the same line apart."""
    constants = [_bytecode(each) if isinstance(each, Code) else _constant(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _constant(value: Any) -> str:
    return f"{{{sorted(map(repr, value))}}}" if isinstance(value, frozenset) else repr(value)

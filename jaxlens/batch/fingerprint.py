"""What a function computes, as a hash: its source, and the values that it reads from elsewhere."""

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxlens._jax import from_torch, is_torch_tensor, on_host

WHOLE = 1 << 16
"""Arrays of at most this size are hashed whole, and of larger ones a few values along each axis."""


def fingerprint(function: Callable) -> str:
    """A hash of the source of a function and of what it reads: closure, defaults, globals, bound arguments, attributes.

    It is the same in another process. Two functions with different fingerprints may compute the same, but functions
    that compute something else because a number or an array has changed have different ones.

    Example:
        >>> def times(factor):
        ...     return lambda value, hook: value * factor
        >>> fingerprint(times(2)) == fingerprint(times(2)), fingerprint(times(2)) == fingerprint(times(3))
        (True, False)
    """
    digest = hashlib.sha256()
    for part in _parts(function, frozenset()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def sample(array: Any) -> bytes:
    """The shape and the dtype of an array, and a few values along each axis."""
    steps = [np.linspace(0, size - 1, min(size, 5)).astype(int) for size in array.shape]
    values = on_host(array[np.ix_(*steps)] if array.ndim else array)
    return f"{array.shape} {array.dtype}".encode() + values.tobytes()


def _parts(value: Any, above: frozenset[int]) -> list[bytes]:
    """The bytes of a value, and of what it holds or reads. Of values of other kinds, only the type.

    `above` are the ids of the values that hold this one, because a function may read itself.
    """
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return [repr(value).encode()]
    if isinstance(value, jax.core.Tracer):
        return [b"traced"]
    if is_torch_tensor(value):
        value = from_torch(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        whole = value.size <= WHOLE
        return [f"{value.shape} {value.dtype}".encode(), on_host(value).tobytes() if whole else sample(value)]
    if id(value) in above:
        return [b"itself"]
    above |= {id(value)}
    if isinstance(value, set | frozenset):  # their order differs between processes
        return sorted(b"".join(_parts(each, above)) for each in value)
    name = value.__qualname__ if isinstance(value, type) else type(value).__qualname__
    return [name.encode(), *(part for held in _held(value) for part in _parts(held, above))]


def _held(value: Any) -> list[Any]:
    """What a container holds, what a function reads, or the attributes of a callable object."""
    if isinstance(value, Mapping):
        return [each for item in value.items() for each in item]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, _attributes(value.__self__)]
    if isinstance(value, type | types.ModuleType):
        return []
    function = inspect.unwrap(value) if callable(value) else value
    if isinstance(function, types.FunctionType):
        read = _variables(function)
        return [_source(function), function.__defaults__, function.__kwdefaults__, read.nonlocals, _data(read.globals)]
    if callable(value):
        return [_source(type(value)), _attributes(value)]
    return [leaf for leaf in jax.tree.leaves(value) if leaf is not value]


def _variables(function: types.FunctionType) -> inspect.ClosureVars:
    try:
        return inspect.getclosurevars(function)
    except ValueError:  # a variable of the closure has no value yet
        return inspect.ClosureVars({}, {}, {}, set())


def _attributes(value: Any) -> list[Any]:
    """The arrays of a pytree, such as a model, or the attributes of another object."""
    leaves = jax.tree.leaves(value)
    return leaves if not (len(leaves) == 1 and leaves[0] is value) else [getattr(value, "__dict__", None)]


def _data(names: Mapping[str, Any]) -> dict[str, Any]:
    """The globals that a function reads, without modules, and of functions among them only the source."""
    kept = {name: value for name, value in names.items() if not isinstance(value, types.ModuleType)}
    return {name: _source(value) if isinstance(value, types.FunctionType) else value for name, value in kept.items()}


def _source(value: Any) -> str | None:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # typed at a prompt, or not written in Python
        code = getattr(value, "__code__", None)
        name = getattr(value, "__qualname__", None)
        if code is None:
            return name
        constants = [constant for constant in code.co_consts if not isinstance(constant, types.CodeType)]
        return f"{name} {code.co_code.hex()} {code.co_names} {constants}"

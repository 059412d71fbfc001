"""Helpers for dtypes, precision, tracers and devices, and the base class of Flax modules."""

import contextlib
import functools
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad

Class = TypeVar("Class")

inlined = functools.partial(jax.jit, inline=True)
"""`jax.jit` for a step of a layer. A compiled program inlines it. Layers that a Python hook edits share one program."""

UNTRACEABLE = (
    jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)  # fmt: skip
"""The errors that JAX raises when it traces a function that needs concrete numbers."""


def is_traced(*trees: Any) -> bool:
    """Whether any array in `trees` is a tracer of a transformation (jit, grad, vmap)."""
    return bool(tracers_in(*trees))


def tracers_in(*trees: Any) -> list[jax.core.Tracer]:
    """The tracers of transformations in `trees`."""
    return [leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.core.Tracer)]


def is_compiled(value: Any) -> bool:
    """Whether a value is a tracer of a program that will be compiled, not only of an eager `grad` or `vmap`."""
    while isinstance(value, jax.core.Tracer):
        if not hasattr(value, "primal") and not hasattr(value, "batch_dim"):
            return True
        value = value.primal if hasattr(value, "primal") else value.val
    return False


def concrete(value: Any) -> Any:
    """The concrete value of a tracer that belongs to `jax.grad` or `jax.vjp` alone. Other values stay unchanged."""
    return value.primal if isinstance(value, jax.core.Tracer) and is_eagerly_differentiated(value) else value


def jvp_of_changing(function: Callable, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """`jax.jvp` of `function(*primals)`, for the rule of a `jax.custom_jvp` with symbolic zeros.

    What has no tangent stays a constant: gradients of weights need as many products as the values.
    """
    leaves, structure = jax.tree.flatten(primals)
    changes = jax.tree.leaves(tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
    changing = [i for i, change in enumerate(changes) if not isinstance(change, SymbolicZero)]

    def run(*changed: Any) -> Any:
        values = list(leaves)
        for i, value in zip(changing, changed, strict=True):
            values[i] = value
        return function(*structure.unflatten(values))

    return jax.jvp(run, [leaves[i] for i in changing], [changes[i] for i in changing])


def is_torch_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor. Does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def from_torch(tensor: Any) -> np.ndarray:
    """A torch tensor as a numpy array of the same dtype, which is not differentiated."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy()


def is_at_hand(array: Any) -> bool:
    """Whether the values of an array can be read without waiting for a device."""
    if not isinstance(array, jax.Array):
        return True
    if is_traced(array) or not array.is_fully_addressable or not array.is_ready():
        return False
    return all(device.platform == "cpu" for device in array.devices())


def on_host(array: Any) -> np.ndarray:
    """An array as a NumPy array, also if devices of other processes hold a part of it, which then send it."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def is_eagerly_differentiated(tracer: jax.core.Tracer) -> bool:
    """Whether a tracer belongs to `jax.grad` or `jax.vjp` alone, and so has a concrete value."""
    primal = getattr(tracer, "primal", None)
    is_concrete = isinstance(primal, jax.Array | np.ndarray) and not isinstance(primal, jax.core.Tracer)
    return is_concrete and not isinstance(tracer, ad.JVPTracer)


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32, or unchanged if its dtype is wider. For sums and norms of half precision."""
    return x.astype(wide_dtype(x.dtype))


def wide_dtype(dtype: Any) -> jnp.dtype:
    """float32, or `dtype` if that is wider."""
    return jnp.promote_types(dtype, jnp.float32)


@contextlib.contextmanager
def full_precision(dtype: Any = "float32") -> Iterator[None]:
    """A context, or as `@full_precision()` a decorator, in which float32 matrix products are float32 on accelerators.

    Public functions with matrix products use it. No function below them sets a precision. A run of a model passes the
    model's dtype: the context has no effect for other dtypes, or if `jax_default_matmul_precision` is set.
    """
    if str(dtype) != "float32" or jax.config.jax_default_matmul_precision is not None:
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


def each_public_method(decorator: Callable[[Callable], Callable]) -> Callable[[type[Class]], type[Class]]:
    """A class decorator that applies a function decorator to public methods, matrix products and properties."""

    def decorated(cls: type[Class]) -> type[Class]:
        for name, member in list(vars(cls).items()):
            if name.startswith(("_", "tree_")) and name not in ("__matmul__", "__rmatmul__"):
                continue
            if isinstance(member, types.FunctionType):
                setattr(cls, name, decorator(member))
            elif isinstance(member, property):
                setattr(cls, name, property(decorator(member.fget), doc=member.__doc__))
        return cls

    return decorated


in_full_precision = each_public_method(full_precision())
"""A class decorator: runs the public methods, operators and properties of the class in `full_precision`."""


def user_cache() -> Path:
    """The folder for files that can be made again: `jaxlens` in `$XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlens"


def use_compilation_cache(folder: str | Path | None = None) -> Path:
    """Keeps compiled programs on disk, so that a later process loads them instead of compiling them again.

    The default folder is `jaxlens/xla` in the cache folder of the user (`$XDG_CACHE_HOME` or `~/.cache`). If JAX has a
    folder already (`jax_compilation_cache_dir`) and none is passed, nothing changes. Call it before the first run, as
    the command line does. Returns the folder.

    Example:
        >>> import jaxlens
        >>> folder = jaxlens.use_compilation_cache()
    """
    if folder is None and jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    folder = Path(folder or user_cache() / "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX's default keeps slow programs only. A layer with a Python hook is many programs that compile quickly.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def as_device(device: Any) -> jax.Device | jax.sharding.Sharding:
    """The device with the name "cpu", "cuda", "gpu:1", etc. Devices and shardings are returned unchanged."""
    if isinstance(device, jax.Device | jax.sharding.Sharding):
        return device
    kind, _, number = str(device).partition(":")
    try:
        return jax.devices(kind)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"there is no device {str(device)!r}; there are {jax.devices()}") from error


# --- Flax

OF_FLAX = frozenset(("_pytree__state", "_pytree__nodes"))
"""The attributes that Flax adds to a module."""


class FlaxModule(nnx.Module, pytree=False):
    """An `nnx.Module` that defines its own pytree, by `tree_flatten` and `tree_unflatten`.

    Flax's pytrees sort the attributes in every call, and compare what Flax notes about an object by identity.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(pytree=False, **kwargs)
        jax.tree_util.register_pytree_with_keys_class(cls)

    def _attributes(self) -> dict[str, Any]:
        """The attributes of the module, without those of Flax."""
        return {name: value for name, value in vars(self).items() if name not in OF_FLAX}

    def _check_valid_context(self, error_msg: Any) -> None:
        """Allows changes under a transformation: a traced function may add hooks to a model. A Param refuses them."""

    def _graph_node_flatten(self):
        return sorted(self._attributes().items()), type(self)

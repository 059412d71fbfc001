"""Helpers for dtypes, precision, tracers and devices."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp

inlined = functools.partial(jax.jit, inline=True)
"""`jax.jit` for a step of a layer. A compiled program inlines it. Layers that a Python hook edits share one program."""

UNTRACEABLE = (
    jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)  # fmt: skip
"""The errors that JAX raises when it traces a function that needs concrete numbers."""


def is_traced(*trees: Any) -> bool:
    """Whether any array in `trees` is a tracer of a transformation (jit, grad, vmap)."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32, or unchanged if its dtype is wider. For sums and norms of half precision."""
    return x.astype(wide_dtype(x.dtype))


def wide_dtype(dtype: Any) -> jnp.dtype:
    """float32, or `dtype` if that is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def full_precision(dtype: Any = "float32") -> contextlib.AbstractContextManager:
    """A context in which float32 matrix products are float32 on accelerators too.

    It has no effect for other dtypes, or if `jax_default_matmul_precision` is set.
    """
    if str(dtype) != "float32" or jax.config.jax_default_matmul_precision is not None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")


def as_device(device: Any) -> jax.Device | jax.sharding.Sharding:
    """The device with the name "cpu", "cuda", "gpu:1", etc. Devices and shardings are returned unchanged."""
    if isinstance(device, jax.Device | jax.sharding.Sharding):
        return device
    kind, _, number = str(device).partition(":")
    try:
        return jax.devices(kind)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"there is no device {str(device)!r}; there are {jax.devices()}") from error

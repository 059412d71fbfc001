"""Small functions of TransformerLens's `utilities` that no other part of jaxlens needs."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from huggingface_hub.constants import HF_HUB_CACHE as CACHE_DIR
from jaxtyping import Array, Float

from jaxlens._jax import full_precision

__all__ = [
    "CACHE_DIR", "batch_addmm", "complex_attn_linear", "get_hf_token", "get_rotary_pct_from_config",
    "select_compatible_kwargs", "simple_attn_linear", "vanilla_addmm", "xielu",
]  # fmt: skip


@full_precision()
def vanilla_addmm(input: Float[Array, "... o"], mat1: Float[Array, "m i"], mat2: Float[Array, "i o"]) -> Array:
    """`input + mat1 @ mat2`.

    Example:
        >>> vanilla_addmm(jnp.ones(2), jnp.ones((1, 3)), jnp.ones((3, 2))).tolist()
        [[4.0, 4.0]]
    """
    return input + mat1 @ mat2


@full_precision()
def batch_addmm(bias: Float[Array, "... o"], weight: Float[Array, "i o"], x: Float[Array, "... i"]) -> Array:
    """`x @ weight + bias`, with any leading axes of `x`."""
    return x @ weight + bias


@full_precision()
def simple_attn_linear(
    input: Float[Array, "b p d"], w: Float[Array, "n d h"], b: Float[Array, "n h"]
) -> Float[Array, "b p n h"]:
    """The queries, keys or values of all heads from one input."""
    return jnp.einsum("bpd,ndh->bpnh", input, w) + b


@full_precision()
def complex_attn_linear(
    input: Float[Array, "b p n d"], w: Float[Array, "n d h"], b: Float[Array, "n h"]
) -> Float[Array, "b p n h"]:
    """The queries, keys or values of all heads, each from its own input."""
    return jnp.einsum("bpnd,ndh->bpnh", input, w) + b


def xielu(input: Float[Array, "..."]) -> Float[Array, "..."]:
    """xIELU with both curvatures 0.8 (Huang & Schlag 2024, arXiv 2411.13010). `jaxlens.nn.mlp.xielu` learns them."""
    negative = (jnp.expm1(jnp.minimum(input, -1e-6)) - input) * 0.8
    return jnp.where(input > 0, 0.8 * input * input, negative) + 0.5 * input


def get_hf_token() -> str | None:
    """The environment variable HF_TOKEN, or None if it is not set."""
    return os.environ.get("HF_TOKEN") or None


def get_rotary_pct_from_config(config: Any) -> float:
    """The part of a head that a transformers config rotates, 0 to 1."""
    rope = getattr(config, "rope_parameters", None)
    in_rope = rope.get("partial_rotary_factor", 1.0) if isinstance(rope, Mapping) else 1.0
    return getattr(config, "rotary_pct", in_rope)


def select_compatible_kwargs(kwargs_dict: Mapping[str, Any], callable: Callable) -> dict[str, Any]:
    """The entries of `kwargs_dict` that are positional parameters of a function.

    Example:
        >>> select_compatible_kwargs({"x": 1, "y": 2}, lambda x: x)
        {'x': 1}
    """
    return {name: value for name, value in kwargs_dict.items() if name in inspect.getfullargspec(callable).args}

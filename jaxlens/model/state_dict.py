"""Weights under TransformerLens's names, one array per layer: `blocks.0.attn.W_Q` instead of `blocks.*.attn.W_Q`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlens.config import BIASES, Config
from jaxlens.hooks.names import split_name
from jaxlens.nn.parameters import Params, parameter_axes

KEYS_AND_VALUES = ("attn.W_K", "attn.W_V", "attn.b_K", "attn.b_V")
"""In a model with grouped heads, TransformerLens prefixes the stored keys and values: `blocks.0.attn._W_K`."""

BUFFERS = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")
"""Entries of a TransformerLens state dict that are not weights."""


def to_state_dict(params: Mapping[str, jax.Array], cfg: Config) -> dict[str, jax.Array]:
    """Parameters under TransformerLens's names. Every layer gets a copy of its row of a stacked weight.

    The experts of a layer stay in one array, `blocks.0.mlp.W_in [expert d_model d_mlp]`, unlike in TransformerLens.

    Example:
        >>> from jaxlens.nn.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_key_value_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> state_dict = to_state_dict(init_parameters(cfg), cfg)
        >>> state_dict["blocks.1.attn.W_Q"].shape, state_dict["blocks.1.attn._W_K"].shape
        ((4, 8, 4), (2, 8, 4))
    """
    state_dict = {}
    for name in parameter_axes(cfg):
        site, stack = _split(name)
        if stack is None:
            state_dict[name] = params[name]
            continue
        if site in KEYS_AND_VALUES and cfg.n_key_value_heads != cfg.n_heads:
            site = site.replace("attn.", "attn._")
        layers = cfg.stacks[cfg.stack_names.index(stack)]
        state_dict |= {f"blocks.{layer}.{site}": params[name][row] for row, layer in enumerate(layers)}
    return state_dict


def from_state_dict(state_dict: Mapping[str, Any], cfg: Config) -> tuple[Params, Config]:
    """Parameters, in the config's dtype, from arrays under TransformerLens's or jaxlens's names; and their config.

    The returned config has the biases and the untied unembedding that are in the state dict. (TransformerLens's state
    dicts have all of them.) Buffers (masks, rotary tables) are ignored.

    Raises:
        ValueError: A parameter is missing from the state dict, or an entry belongs to no parameter.

    Example:
        >>> from jaxlens.nn.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> params = init_parameters(cfg)
        >>> again, _ = from_state_dict(to_state_dict(params, cfg), cfg)
        >>> list(again) == list(params)
        True
    """
    given = {name.replace("attn._", "attn."): name for name in state_dict if split_name(name)[0] not in BUFFERS}
    last = {name.rpartition(".")[2] for name in given}
    tied = cfg.tie_word_embeddings and "unembed.W_U" not in given
    cfg = cfg.replace(biases=(*cfg.biases, *last.intersection(BIASES)), tie_word_embeddings=tied)
    axes = parameter_axes(cfg)
    expected = {name: [name] if name in given else _layer_names(name, cfg) for name in axes}
    names = {entry for entries in expected.values() for entry in entries}
    missing, unknown = sorted(names - given.keys()), sorted(given.keys() - names)
    if missing or unknown:
        raise ValueError(f"the state dict does not fit the config: missing {missing}; unknown {unknown}")
    params = {}
    for name, entries in expected.items():
        arrays = [jnp.asarray(state_dict[given[entry]], cfg.dtype) for entry in entries]
        is_stacked = arrays[0].ndim == len(axes[name].split())
        params[name] = arrays[0] if is_stacked else jnp.stack(arrays)
    return params, cfg


def processed_state_dict(one_pass: Callable, state_dict: Mapping[str, Any], cfg: Config) -> dict[str, jax.Array]:
    """A state dict after a pass of `jaxlens.weights`. Folded weights of norms become ones, and their biases zeros."""
    params, cfg = from_state_dict(state_dict, cfg)
    processed = to_state_dict(*one_pass(params, cfg)[:2])
    folded = {name: jnp.asarray(state_dict[name]) for name in state_dict if name not in processed}
    neutral = not cfg.rmsnorm_uses_offset
    return {name: jnp.full_like(w, name.endswith(".w") and neutral) for name, w in folded.items()} | processed


def _split(name: str) -> tuple[str, str | None]:
    """The name of a parameter within its block, and the name of its stack (None outside the blocks)."""
    if not name.startswith("blocks."):
        return name, None
    _, stack, site = name.split(".", 2)
    return site, stack


def _layer_names(name: str, cfg: Config) -> list[str]:
    """The names of a stacked parameter in each of its layers."""
    site, stack = _split(name)
    if stack is None:
        return [name]
    return [f"blocks.{layer}.{site}" for layer in cfg.stacks[cfg.stack_names.index(stack)]]

"""Weights under TransformerLens's own names, one array per layer: `blocks.0.attn.W_Q` and not `blocks.*.attn.W_Q`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlens.config import BIASES, Config
from jaxlens.hook_table import split_name
from jaxlens.parameters import Params, parameter_axes

KEYS_AND_VALUES = ("attn.W_K", "attn.W_V", "attn.b_K", "attn.b_V")
"""Where query heads share keys and values, TransformerLens puts "_" before their names: `W_K` is the repeated one."""

BUFFERS = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")
"""What a TransformerLens state dict holds besides weights."""


def to_state_dict(params: Mapping[str, jax.Array], cfg: Config) -> dict[str, jax.Array]:
    """Parameters as TransformerLens names them; those of layers are copied out of their stacks.

    Experts, which TransformerLens keeps apart, stay together: `blocks.0.mlp.W_in [expert d_model d_mlp]`.

    Example:
        >>> from jaxlens.parameters import init_parameters
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_key_value_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> state_dict = to_state_dict(init_parameters(cfg), cfg)
        >>> state_dict["blocks.1.attn.W_Q"].shape, state_dict["blocks.1.attn._W_K"].shape
        ((4, 8, 4), (2, 8, 4))
    """
    found = {}
    for name in parameter_axes(cfg):
        site, stack = _split(name)
        if stack is None:
            found[name] = params[name]
            continue
        if site in KEYS_AND_VALUES and cfg.n_key_value_heads != cfg.n_heads:
            site = site.replace("attn.", "attn._")
        layers = cfg.stacks[cfg.stack_names.index(stack)]
        found |= {f"blocks.{layer}.{site}": params[name][row] for row, layer in enumerate(layers)}
    return found


def from_state_dict(state_dict: Mapping[str, Any], cfg: Config) -> tuple[Params, Config]:
    """Parameters from arrays by TransformerLens's names or by ours, in the config's dtype; and the config they fit.

    Biases that the config leaves out, and an unembedding where it ties that to the embedding, become part of the
    model: TransformerLens's state dicts have them all. Its buffers (masks, rotary tables) are passed over.

    Raises:
        ValueError: a parameter is missing from the state dict, or something in it belongs to none.

    Example:
        >>> from jaxlens.parameters import init_parameters
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
    wanted = {name: [name] if name in given else _per_layer(name, cfg) for name in axes}
    names = {one for ones in wanted.values() for one in ones}
    missing, unknown = sorted(names - given.keys()), sorted(given.keys() - names)
    if missing or unknown:
        raise ValueError(f"the state dict does not fit the config: missing {missing}; not of this model {unknown}")
    params = {}
    for name, ones in wanted.items():
        arrays = [jnp.asarray(state_dict[given[one]], cfg.dtype) for one in ones]
        whole = arrays[0].ndim == len(axes[name].split())
        params[name] = arrays[0] if whole else jnp.stack(arrays)
    return params, cfg


def _split(name: str) -> tuple[str, str | None]:
    """The name of a parameter within its block, and its stack; None for one outside the blocks."""
    if not name.startswith("blocks."):
        return name, None
    _, stack, site = name.split(".", 2)
    return site, stack


def _per_layer(name: str, cfg: Config) -> list[str]:
    """The names of a stacked parameter's layers."""
    site, stack = _split(name)
    if stack is None:
        return [name]
    return [f"blocks.{layer}.{site}" for layer in cfg.stacks[cfg.stack_names.index(stack)]]

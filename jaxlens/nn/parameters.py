"""A model's weights as one flat dict: names, shapes, initial values, and the conversion from and to modules.

Names are those of TransformerLens's state dict, with the layer number replaced by the stack that holds the layer. The
weights of all layers are one array: `blocks.*.attn.W_Q [layer head d_model d_head]`. A model whose blocks are of
several kinds has several stacks, named by their layers: `blocks.0.mlp.W_in` and `blocks.1-11.mlp.W_in`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.config import Config
from jaxlens.nn.attention import Attention
from jaxlens.nn.block import Block
from jaxlens.nn.embed import Embed, PosEmbed, Unembed
from jaxlens.nn.mlp import GatedMLP
from jaxlens.nn.module import arrays, axis_lengths, prefixed
from jaxlens.nn.norm import Norm
from jaxlens.nn.transformer import Modules

Params = dict[str, jax.Array]

BIAS_AXES = {**Attention.bias_axes(), **GatedMLP.bias_axes(), "b_U": "o"}
"""The axes of biases outside mixtures of experts, by name."""


def parameter_axes(cfg: Config) -> dict[str, str]:
    """Every parameter of a model and its axes (letters as in `jaxlens.nn.module`; `l` counts the layers of a stack).

    Example:
        >>> cfg = Config(n_layers=2, d_model=12, n_heads=3, d_head=5, d_vocab=50, n_ctx=16, attn_only=True)
        >>> parameter_axes(cfg)["blocks.*.attn.W_Q"]
        'l n d h'
    """
    axes = prefixed("embed", Embed.axes(cfg)) | prefixed("pos_embed", PosEmbed.axes(cfg))
    for layers, name in zip(cfg.stacks, cfg.stack_names, strict=True):
        block = Block.axes(cfg, cfg.block_kind(layers[0]))
        axes |= prefixed(f"blocks.{name}", {weight: f"l {letters}" for weight, letters in block.items()})
    norm = prefixed("ln_final", Norm.axes(cfg, kind=cfg.final_norm_type)) if cfg.has_final_norm else {}
    return axes | norm | prefixed("unembed", Unembed.axes(cfg))


def parameter_shapes(cfg: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Every parameter's shape and dtype."""
    if cfg.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError('dtype "float64" needs jax.config.update("jax_enable_x64", True) before the model is made')
    lengths = axis_lengths(cfg)
    layers = {f"blocks.{name}.": len(stack) for stack, name in zip(cfg.stacks, cfg.stack_names, strict=True)}
    shapes = {}
    for name, letters in parameter_axes(cfg).items():
        depth = next((n for prefix, n in layers.items() if name.startswith(prefix)), None)
        shape = tuple(depth if letter == "l" else lengths[letter] for letter in letters.split())
        shapes[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(cfg.dtype))
    return shapes


def init_parameters(cfg: Config, seed: int = 0) -> Params:
    """Initial weights by `cfg.init_mode`, as TransformerLens draws them. Biases are zero and norms the identity.

    "gpt2" draws from a normal distribution of standard deviation `initializer_range`. The other modes scale by fan-in
    and fan-out (Glorot & Bengio 2010; He et al. 2015, arXiv 1502.01852) with `initializer_range` as gain. The random
    numbers are numpy's: they are the same on every device, and no program is compiled per shape.
    """
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(_initial_values(cfg, name, shape.shape, random), shape.dtype)
        for name, shape in parameter_shapes(cfg).items()
    }


def _initial_values(cfg: Config, name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    weight = name.rpartition(".")[2]
    if weight in ("A", "B", "scale"):  # of a low-rank update, which is zero at first
        values = random.standard_normal(shape, np.float32) * np.float32(cfg.d_model**-0.5)
        return values if weight == "A" else np.full(shape, weight == "scale", np.float32)
    if not weight.startswith("W_"):
        return np.full(shape, weight == "w" and not cfg.rmsnorm_uses_offset, np.float32)
    if cfg.init_mode == "gpt2":
        return random.standard_normal(shape, np.float32) * np.float32(cfg.initializer_range or 0.8 / cfg.d_model**0.5)
    one_layer = shape[1:] if name.startswith("blocks.") else shape
    one_layer = one_layer if len(one_layer) > 1 else (*one_layer, 1)
    fan_in, fan_out = one_layer if len(one_layer) == 2 else (one_layer[1], one_layer[0] * one_layer[2])
    scheme, distribution = cfg.init_mode.split("_")
    variance = 2 / (fan_in + fan_out) if scheme == "xavier" else 2 / fan_in
    deviation = np.float32((cfg.initializer_range or 1.0) * variance**0.5)
    if distribution == "normal":
        return random.standard_normal(shape, np.float32) * deviation
    return (random.random(shape, np.float32) * 2 - 1) * deviation * np.float32(3**0.5)


def check_parameters(cfg: Config, params: Mapping[str, Any]) -> None:
    """Raises a ValueError that lists every parameter that is missing, unknown, or of the wrong shape or dtype."""
    shapes = parameter_shapes(cfg)
    problems = [f"{name} is missing" for name in shapes if name not in params]
    problems += [f"{name} is not a parameter of this config" for name in params if name not in shapes]
    for name, expected in shapes.items():
        if name in params and tuple(params[name].shape) != expected.shape:
            problems.append(f"{name} has shape {tuple(params[name].shape)}; expected {expected.shape}")
        elif name in params and params[name].dtype != expected.dtype:
            problems.append(f"{name} is {params[name].dtype}; the config's dtype is {cfg.dtype}")
    if problems:
        raise ValueError("these parameters do not fit the config: " + "; ".join(problems))


def assemble(cfg: Config, params: Mapping[str, jax.Array]) -> Modules:
    """The modules of a model, made from its flat dict of parameters."""
    check_parameters(cfg, params)
    return Modules(cfg, params)


def disassemble(cfg: Config, modules: Modules) -> dict[str, Any]:
    """The flat dict of parameters of `modules`: the reverse of `assemble`."""
    params = {}
    for name in parameter_axes(cfg):
        top, _, rest = name.partition(".")
        if top == "blocks":
            stack, _, rest = rest.partition(".")
            owner: Any = modules.stacks[cfg.stack_names.index(stack)]
        else:
            owner = getattr(modules, top)
        for attribute in rest.split("."):
            owner = getattr(owner, attribute)
        params[name] = arrays(owner)
    return params

"""A model's weights as one flat dict: their names, their shapes, their first values, and the parts they make up.

Names are those of TransformerLens's state dict, with the layer replaced by the stack that holds it: the weights of all
layers lie together in `blocks.*.attn.W_Q [layer head d_model d_head]`. Where blocks differ in shape there are several
stacks, named by their layers: `blocks.0.mlp.W_in` and `blocks.1-11.mlp.W_in`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.config import Config
from jaxlens.nn.block import Block
from jaxlens.nn.embed import Embed, PosEmbed, Unembed
from jaxlens.nn.norm import Norm
from jaxlens.nn.part import prefixed, sizes, within

Params = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parts:
    """The whole model as parts: `stacks` are Blocks whose weights have a leading layer axis, in `cfg.stacks` order."""

    embed: Embed
    pos_embed: PosEmbed | None
    stacks: tuple[Block, ...]
    ln_final: Norm | None
    unembed: Unembed


def parameter_axes(cfg: Config) -> dict[str, str]:
    """Every parameter of a model and its axes (letters as in `jaxlens.nn.part`; `l` counts the layers of a stack).

    Example:
        >>> cfg = Config(n_layers=2, d_model=12, n_heads=3, d_head=5, d_vocab=50, n_ctx=16, attn_only=True)
        >>> parameter_axes(cfg)["blocks.*.attn.W_Q"]
        'l n d h'
    """
    axes = prefixed("embed", Embed.axes(cfg)) | prefixed("pos_embed", PosEmbed.axes(cfg))
    for layers, name in zip(cfg.stacks, cfg.stack_names, strict=True):
        block = Block.axes(cfg, _mixes_experts(cfg, layers))
        axes |= prefixed(f"blocks.{name}", {weight: f"l {letters}" for weight, letters in block.items()})
    norm = prefixed("ln_final", Norm.axes(cfg)) if _ends_in_a_norm(cfg) else {}
    return axes | norm | prefixed("unembed", Unembed.axes(cfg))


def parameter_shapes(cfg: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Every parameter's shape and dtype.

    Raises:
        ValueError: the dtype is float64 and JAX does not have it switched on.
    """
    if cfg.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError('dtype "float64" needs jax.config.update("jax_enable_x64", True) before the model is made')
    lengths = sizes(cfg)
    layers = {f"blocks.{name}.": len(stack) for stack, name in zip(cfg.stacks, cfg.stack_names, strict=True)}
    shapes = {}
    for name, letters in parameter_axes(cfg).items():
        depth = next((n for prefix, n in layers.items() if name.startswith(prefix)), None)
        shape = tuple(depth if letter == "l" else lengths[letter] for letter in letters.split())
        shapes[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(cfg.dtype))
    return shapes


def init_parameters(cfg: Config, seed: int = 0) -> Params:
    """First weights by `cfg.init_mode`, as TransformerLens draws them: biases zero, norms the identity.

    "gpt2" draws from a normal of standard deviation `initializer_range`; the others scale by fan-in and fan-out
    (Glorot & Bengio 2010; He et al. 2015, arXiv 1502.01852) with `initializer_range` as gain. The draws are numpy's:
    they need no program compiled for every shape, and are the same on every device.
    """
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(_first_values(cfg, name, shape.shape, random), shape.dtype)
        for name, shape in parameter_shapes(cfg).items()
    }


def _first_values(cfg: Config, name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    last = name.rpartition(".")[2]
    if not last.startswith("W_"):
        return np.full(shape, last == "w" and not cfg.rmsnorm_uses_offset, np.float32)
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
    """
    Raises:
        ValueError: a parameter is missing, unknown, or of the wrong shape or dtype; every one of them is named.
    """
    shapes = parameter_shapes(cfg)
    problems = [f"{name} is missing" for name in shapes if name not in params]
    problems += [f"{name} is none of this config's" for name in params if name not in shapes]
    for name, wanted in shapes.items():
        if name in params and tuple(params[name].shape) != wanted.shape:
            problems.append(f"{name} has shape {tuple(params[name].shape)}; wanted {wanted.shape}")
        elif name in params and params[name].dtype != wanted.dtype:
            problems.append(f"{name} is {params[name].dtype}; the config's dtype is {cfg.dtype}")
    if problems:
        raise ValueError("these parameters do not fit the config: " + "; ".join(problems))


def assemble(cfg: Config, params: Mapping[str, jax.Array]) -> Parts:
    """The parts that a flat dict of parameters makes up."""
    check_parameters(cfg, params)
    stacks = tuple(
        Block(cfg, within(f"blocks.{name}", params), _mixes_experts(cfg, layers))
        for layers, name in zip(cfg.stacks, cfg.stack_names, strict=True)
    )
    return Parts(
        embed=Embed(cfg, within("embed", params)),
        pos_embed=PosEmbed(cfg, within("pos_embed", params)) if PosEmbed.exists(cfg) else None,
        stacks=stacks,
        ln_final=Norm(cfg, within("ln_final", params)) if _ends_in_a_norm(cfg) else None,
        unembed=Unembed(cfg, within("unembed", params)),
    )


def disassemble(cfg: Config, parts: Parts) -> Params:
    """The flat dict of parameters that parts are made of: the reverse of `assemble`."""
    params = {}
    for name in parameter_axes(cfg):
        top, _, rest = name.partition(".")
        if top == "blocks":
            stack, _, rest = rest.partition(".")
            owner: Any = parts.stacks[cfg.stack_names.index(stack)]
        else:
            owner = getattr(parts, top)
        for attribute in rest.split("."):
            owner = getattr(owner, attribute)
        params[name] = owner
    return params


def _mixes_experts(cfg: Config, layers: tuple[int, ...]) -> bool:
    return bool(cfg.moe_layers) and cfg.moe_layers[layers[0]]


def _ends_in_a_norm(cfg: Config) -> bool:
    """Where the norm of a sum is the last thing that a block does, no other follows it."""
    return cfg.normalization_type is not None and cfg.norm_placement != "sum"

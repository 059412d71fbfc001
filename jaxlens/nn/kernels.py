"""Attention whose scores and pattern nobody sees: by a kernel of the accelerator, or block by block.

Kernels are those of tokamax (`pip install "hooked-jaxlens[kernels]"`), which compute the same in one program without
an array of scores. They are for half precision: float32 results stay float32 results. Whether there is a kernel depends
on the device, the dtype and the shapes, and not on hooks and captures.

Axes: b batch, p query position, s source position, n query head, k key/value head, h d_head, t d_v_head.
"""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.config import WHOLE_PAST, Config
from jaxlens.nn.blockwise import attend_blockwise, tokens_first
from jaxlens.nn.packing import PADDING
from jaxlens.nn.position_bias import position_bias
from jaxlens.nn.scores import heads_first
from jaxlens.nn.sequence import LayerInfo, layer_scales

IMPLEMENTATIONS = ("mosaic", "triton")
"""The kernels of tokamax, in the order in which they are tried: of TPUs and of new GPUs, and of other GPUs."""

DTYPES = ("bfloat16", "float16")

LENGTH_MULTIPLE, HEAD_MULTIPLE = 128, 64
"""Kernels compute tiles: sequences are padded to whole tiles, and heads must consist of them."""


def attend_unseen(
    cfg: Config, q: Float[Array, "b p n h"], k: Float[Array, "b k s h"], v: Float[Array, "b k s t"], info: LayerInfo,
    sink=None,
) -> Float[Array, "b p n t"]:  # fmt: skip
    """Computes `Attention.attend` up to rounding, in memory proportional to the length of the sequence.

    The values at positions of padding are arbitrary finite numbers.
    """
    if sink is None and suits_kernels(cfg, q, k, v, info) and any(has_kernel(cfg, w, q, k, v) for w in cfg.windows):
        leaves, structure = jax.tree.flatten(info)
        return _attend(cfg, structure, q, k, v, *leaves)
    return attend_blockwise(cfg, q, k, v, info, sink)


def suits_kernels(cfg: Config, q, k, v, info: LayerInfo) -> bool:
    """Whether kernels compute such attention: in half precision, on one device, of tokens to the tokens before them,
    with scores that depend on queries and keys alone.
    """
    is_half = q.dtype.name in DTYPES
    is_plain = position_bias(cfg) is None and len(set(layer_scales(cfg).tolist())) == 1
    is_causal = info.low.ndim == 2 and info.high.shape == info.sources.shape and q.shape[1] == k.shape[2]
    fits = q.shape[-1] % HEAD_MULTIPLE == v.shape[-1] % HEAD_MULTIPLE == 0
    is_divided = jax.typeof(q).sharding.mesh.size > 1
    return is_half and is_plain and is_causal and fits and not is_divided


def has_kernel(cfg: Config, window: int | None, q, k, v) -> bool:
    """Whether tokamax is installed and has a kernel for this device and these shapes."""
    return tokamax() is not None and jax.eval_shape(functools.partial(_by_kernel, cfg, window), q, k, v) is not None


@functools.cache
def tokamax() -> ModuleType | None:
    """The package tokamax, or None if it is not installed."""
    try:
        import tokamax
        from absl import flags
    except ImportError:
        return None
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # else tokamax takes the arguments of a program, such as Jupyter's, for its own
    return tokamax


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attend(cfg: Config, structure, q, k, v, *info: Array) -> Float[Array, "b p n t"]:
    """The window of this layer is data, so there is a branch for each window that layers have."""
    info_of_layer: LayerInfo = structure.unflatten(info)
    windows = {window or WHOLE_PAST: window for window in cfg.windows}
    sizes = sorted(windows)
    branches = [functools.partial(_attend_in_window, cfg, windows[size]) for size in sizes]
    which = jnp.searchsorted(jnp.array(sizes, jnp.int32), info_of_layer.window)
    return jax.lax.switch(which, branches, q, k, v, info_of_layer)


@_attend.defjvp
def _attend_jvp(cfg: Config, structure, primals, tangents):
    """Kernels have no forward-mode derivatives, so derivatives are those of attention block by block."""

    def run(q, k, v, *info: Array):
        return attend_blockwise(cfg, q, k, v, structure.unflatten(info))

    return jax.jvp(run, primals, tangents)


def _attend_in_window(cfg: Config, window: int | None, q, k, v, info: LayerInfo):
    """Attention in a layer with this window. A kernel counts slots, and a window tokens, so tokens come first."""
    if not has_kernel(cfg, window, q, k, v):
        return attend_blockwise(cfg, q, k, v, info)

    def in_place(q, k, v, info: LayerInfo):
        return _by_kernel(cfg, window, q, k, v)

    is_token = info.sources != PADDING
    are_first = jnp.all(is_token[:, :-1] >= is_token[:, 1:])
    return jax.lax.cond(are_first, in_place, functools.partial(tokens_first, in_place), q, k, v, info)


def _by_kernel(cfg: Config, window: int | None, q, k, v) -> Float[Array, "b p n t"] | None:
    """The result of a kernel, or None if there is none."""
    padding = ((0, 0), (0, -q.shape[1] % LENGTH_MULTIPLE), (0, 0), (0, 0))
    inputs = [jnp.pad(x, padding) for x in (q, heads_first(k), heads_first(v))]
    try:
        z = tokamax().dot_product_attention(
            *inputs, scale=1 / float(layer_scales(cfg)[0]), is_causal=True, implementation=IMPLEMENTATIONS,
            local_window_size=None if window is None else (window - 1, 0), logits_soft_cap=cfg.attn_scores_soft_cap,
        )  # fmt: skip
    except ExceptionGroup:  # none of them is for this device, or for these shapes
        return None
    return z[:, : q.shape[1]]

"""Direct path patching: what one component's output does through one reader of it alone.

Patching a head's output changes everything behind it. Direct path patching changes only what a single receiver (a
head's queries, keys or values, an MLP, or the logits) reads of it: the receiver's copy of the residual stream moves by
the difference between the sender's output in the clean and in the corrupted run (Goldowsky-Dill et al. 2023, arXiv
2304.05969; Wang et al. 2022, arXiv 2211.00593). Every pair is a cell of one sweep (sweep.py).

Axes: s sender, b batch, p position, d d_model, n query head, k key/value head, h d_head, l layer, v vocabulary.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.analysis.activation_cache import ActivationCache
from jaxlens.analysis.interventions import Patched, metric_axes
from jaxlens.analysis.patching import Metric, cells_at
from jaxlens.analysis.sweep import How, sweep
from jaxlens.config_checks import check_adds_up, check_heads_are_linear
from jaxlens.hooks import hook
from jaxlens.transformer import HookedTransformer

Component = Literal["q", "k", "v", "mlp", "logits"]
Node = tuple[int, int] | int
"""A head as (layer, head), or an MLP as its layer."""

RECEIVERS = {"q": "q_input", "k": "k_input", "v": "v_input", "mlp": "mlp_in", "logits": "resid_post"}
"""Where each kind of receiver reads the residual stream."""


def path_patch(
    model: HookedTransformer, corrupted: Any, clean: Any, metric: Metric, component: Component = "q",
    senders: Sequence[Node] | None = None, receivers: Sequence[Node] | None = None,
    **how: Unpack[How],
) -> Patched:  # fmt: skip
    """The metric of the corrupted run when each receiver alone sees each sender as it is in the clean run.

    `senders` are heads `(layer, head)` and MLPs `layer`; all heads by default. `receivers` are heads for "q", "k" and
    "v" (key/value heads for the latter two), layers for "mlp", and none for "logits"; by default all there are. The
    receiver's norm is computed anew. A receiver that comes before its sender sees no difference: the metric there is
    that of the corrupted run.

    Returns:
        The metric, with the axes ("sender", "receiver"), and "prompt" if it gives one number for each.

    Raises:
        ValueError: a component, sender or receiver that the model does not have, or runs of different shapes.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> result = path_patch(
        ...     model, [[1, 5, 3]], [[1, 2, 3]], lambda logits: logits[0, -1, 4], "q", senders=[(0, 1)])
        >>> result.labels["receiver"]
        ['L0H0 q', 'L0H1 q', 'L1H0 q', 'L1H1 q']
    """
    cfg = model.cfg
    check_adds_up(cfg)
    if component in ("q", "k", "v"):
        check_heads_are_linear(cfg)
    if component not in RECEIVERS or (component == "mlp" and cfg.attn_only):
        raise ValueError(f"component is {component!r}; wanted one of {list(RECEIVERS)} that the model has")
    n_heads = {"q": cfg.n_heads, "k": cfg.n_key_value_heads, "v": cfg.n_key_value_heads}.get(component)
    all_heads = list(itertools.product(range(cfg.n_layers), range(cfg.n_heads)))
    there_are = list(itertools.product(range(cfg.n_layers), range(n_heads))) if n_heads else list(range(cfg.n_layers))
    there_are = [cfg.n_layers - 1] if component == "logits" else there_are
    senders = _checked("sender", all_heads if senders is None else senders, [*all_heads, *range(cfg.n_layers)])
    receivers = _checked("receiver", there_are if receivers is None else receivers, there_are)

    goal, clean_outputs = _outputs(model, clean, senders, metric, how.get("attention_mask"))
    start, corrupted_outputs = _outputs(model, corrupted, senders, metric, how.get("attention_mask"))
    shapes = [outputs.shape[1:3] for outputs in (corrupted_outputs, clean_outputs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"both runs need the same prompts and positions; got {shapes[0]} and {shapes[1]}")
    moves = clean_outputs - corrupted_outputs
    indices = np.array([
        (*np.atleast_1d(receiver), sender if _reaches(cfg, senders[sender], component, receiver) else -1)
        for sender, receiver in itertools.product(range(len(senders)), receivers)
    ], np.int32)  # fmt: skip
    cells = cells_at(model, RECEIVERS[component], indices)
    setter = hook(_move_head if n_heads else _move, moves=moves)
    values = sweep(model, corrupted, cells, setter, None, {"": metric}, **how)[""]
    labels = {"sender": [_label(one) for one in senders], "receiver": [_label(one, component) for one in receivers]}
    values = values.reshape(len(senders), len(receivers), *values.shape[1:])
    labels |= metric_axes(values.shape[2:])
    return Patched(values, tuple(labels), labels, start, goal)


def _checked(what: str, nodes: Sequence[Node], there_are: Sequence[Node]) -> list[Node]:
    nodes = [tuple(map(int, node)) if np.ndim(node) else int(node) for node in nodes]
    if odd := [node for node in nodes if node not in there_are]:
        raise ValueError(f"there is no {what} {odd[0]}; heads are (layer, head), MLPs their layer, both from 0")
    if not nodes:
        raise ValueError(f"there is no {what} in the list; give at least one, or None for all")
    return nodes


def _reaches(cfg: Any, sender: Node, component: Component, receiver: Node) -> bool:
    """Whether the sender writes to the residual stream before the receiver reads it."""
    is_head = isinstance(sender, tuple)
    written, read = sender[0] if is_head else sender, receiver[0] if isinstance(receiver, tuple) else receiver
    same_layer = component == "logits" or (component == "mlp" and is_head and not cfg.parallel_attn_mlp)
    return written < read or (written == read and same_layer)


def _outputs(
    model: HookedTransformer, run: Any, senders: list[Node], metric: Metric, attention_mask: Any = None
) -> tuple[np.ndarray, Float[Array, "s b p d"]]:
    """The metric of a run, and what the senders write to the residual stream in it."""
    names = ("hook_mlp_out", "ln1_post.hook_scale", "attn.hook_z")
    logits, cache = model.run_with_cache(
        run, names_filter=lambda name: name.endswith(names), attention_mask=attention_mask
    )
    heads = [node for node in senders if isinstance(node, tuple)]
    written = {node: cache["mlp_out", node] for node in senders if not isinstance(node, tuple)}
    if heads:
        results = cache.stack_head_results(layer=-1)
        written |= {(layer, head): results[layer * model.cfg.n_heads + head] for layer, head in heads}
    return np.asarray(metric(logits)), jnp.stack([written[node] for node in senders])


def _move(activation: Array, index: Array, source: Array, moves: Float[Array, "s b p d"]) -> Array:
    """Index (layer, sender): what an MLP or the logits read, moved."""
    return activation + jnp.where(index[1] < 0, 0, moves[index[1]]).astype(activation.dtype)


def _move_head(activation: Array, index: Array, source: Array, moves: Float[Array, "s b p d"]) -> Array:
    """Index (layer, head, sender): what one head reads, moved."""
    return activation.at[:, :, index[1]].add(jnp.where(index[2] < 0, 0, moves[index[2]]).astype(activation.dtype))


def _label(node: Node, component: Component | None = None) -> str:
    if component == "logits":
        return "logits"
    name = f"L{node[0]}H{node[1]}" if isinstance(node, tuple) else f"L{node} mlp"
    return f"{name} {component}" if component in ("q", "k", "v") else name


# --- TransformerLens's linear form of it


def get_act_patch_direct_path(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array],
    corrupted_cache: ActivationCache, patching_metric: Metric, src_layer: int, src_head: int,
    component: Literal["q", "k", "v"] = "q", verbose: bool = True, **how: Unpack[How],
) -> Float[Array, "l n"]:  # fmt: skip
    """The metric when each head's queries (or keys, or values) alone see one head's output of the clean run.

    The scale of the receiver's norm is kept as in the corrupted run, so the change is linear in the sender's output;
    `path_patch` computes the norm anew. Heads in layers up to `src_layer` are not reached: 0.
    """
    found = _direct_paths(model, corrupted_tokens, clean_cache, corrupted_cache, patching_metric,
                          [(src_layer, src_head)], component, {"progress": verbose, **how})  # fmt: skip
    return found[0]


def get_act_patch_direct_path_all_sources(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array],
    corrupted_cache: ActivationCache, patching_metric: Metric, component: Literal["q", "k", "v"] = "q",
    verbose: bool = True, **how: Unpack[How],
) -> Float[Array, "l n l n"]:  # fmt: skip
    """`get_act_patch_direct_path` from every head to every other: [source layer, source head, layer, head]."""
    sources = list(itertools.product(range(model.cfg.n_layers), range(model.cfg.n_heads)))
    found = _direct_paths(model, corrupted_tokens, clean_cache, corrupted_cache, patching_metric, sources, component,
                          {"progress": verbose, **how})  # fmt: skip
    return found.reshape(model.cfg.n_layers, model.cfg.n_heads, *found.shape[1:])


def _direct_paths(model, corrupted_tokens, clean_cache, corrupted_cache, metric, sources, component, how):
    cfg = model.cfg
    check_heads_are_linear(cfg)
    if component not in ("q", "k", "v") or cfg.normalization_type is None or cfg.norm_placement != "pre":
        raise ValueError(
            f'component is {component!r}, wanted "q", "k" or "v" of a model with a norm before attention and none '
            "after it; path_patch takes every other"
        )
    _checked("source", sources, list(itertools.product(range(cfg.n_layers), range(cfg.n_heads))))
    weights = {"q": "W_Q", "k": "W_K", "v": "W_V"}[component]
    W = jnp.stack([getattr(model.blocks[layer].attn.part, weights) for layer in range(cfg.n_layers)])
    ratios = [_head_outputs(model, cache, sources) for cache in (clean_cache, corrupted_cache)]
    moves = ratios[0] - ratios[1]
    if cfg.normalization_type.startswith("LN"):
        moves = moves - jnp.mean(moves, axis=-1, keepdims=True)
    scales = jnp.stack([corrupted_cache[f"blocks.{layer}.ln1.hook_scale"] for layer in range(cfg.n_layers)])
    norms = [model.blocks[layer].ln1.w for layer in range(cfg.n_layers)]
    if norms[0] is not None:
        W = W * (jnp.stack(norms) + cfg.rmsnorm_uses_offset)[:, None, :, None]
    indices = np.array([
        (layer, head, source) for source in range(len(sources))
        for layer, head in itertools.product(range(cfg.n_layers), range(W.shape[1])) if layer > sources[source][0]
    ], np.int32).reshape(-1, 3)  # fmt: skip
    result = jnp.zeros((len(sources), cfg.n_layers, W.shape[1]))
    if not len(indices):
        return result
    setter = hook(_move_linearly, moves=moves, scales=scales, W=W)
    values = sweep(model, corrupted_tokens, cells_at(model, component, indices), setter, None, {"": metric}, **how)[""]
    return result.at[indices[:, 2], indices[:, 0], indices[:, 1]].set(values)


def _head_outputs(model: HookedTransformer, cache: Mapping[str, Array], heads: list[tuple[int, int]]) -> Array:
    """What heads write to the residual stream, [s b p d]."""
    zs = jnp.stack([cache[f"blocks.{layer}.attn.hook_z"][:, :, head] for layer, head in heads])
    W_O = jnp.stack([model.blocks[layer].attn.W_O[head] for layer, head in heads])
    return jnp.einsum("sbph,shd->sbpd", zs, W_O) * model.cfg.residual_scale


def _move_linearly(activation: Array, index: Array, source: Array, moves: Array, scales: Array, W: Array) -> Array:
    """Index (layer, head, sender): a head's queries, keys or values, moved by what they make of the sender's change."""
    layer, head, sender = index
    moved = jnp.einsum("bpd,dh->bph", moves[sender] / scales[layer], W[layer, head])
    return activation.at[:, :, head].add(moved.astype(activation.dtype))

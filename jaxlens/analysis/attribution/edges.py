"""Edge attribution patching: how much each component affects a metric through the input of each later component.

The residual stream is a sum, so the output of one component can be patched in the input of a single other component.
The first-order estimate of the effect, for all pairs at once, is (Syed et al. 2023, arXiv 2310.10348)

    score = (output of `upstream` in the clean run - in the corrupted run) · gradient with respect to `receiver`'s input

    upstream     embed, a0.h0 … (heads), m0 … (MLPs)
    receiver     a0.h0<q>, a0.h0<k>, a0.h0<v> … (k and v per key/value head), m0 …, logits

The output of a component is the vector that it adds to the residual stream: the output of the norm, if a norm follows
attention or the MLP, at its scale in the run. The input of a receiver is the residual stream before its norm.

Axes: b batch, p position, r row (a position of a prompt), u upstream component, w receiver, n query head, k key/value
head, h d_head, d d_model, l layer of a stretch (consecutive layers of one kind).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlens._jax import on_host, wide
from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.analysis.attribution import backward
from jaxlens.analysis.attribution.backward import ByStretch
from jaxlens.analysis.attribution.nodes import path_steps
from jaxlens.analysis.compiled import compiled
from jaxlens.analysis.inputs import read_pair
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.config import Config
from jaxlens.hooks.tap import Tap
from jaxlens.model.cache.linear_norm import LinearNorm
from jaxlens.model.transformer import HookedTransformer
from jaxlens.nn.block import Block
from jaxlens.weights.circuits import require_additive_residual, require_linear_heads

INPUTS = frozenset(("attn.hook_q", "attn.hook_k", "attn.hook_v", "hook_mlp_in"))
OUTPUTS = frozenset(("hook_resid_pre", "attn.hook_z", "ln1_post.hook_scale", "hook_mlp_out"))
CHUNK_BYTES = 2**28  # outputs and gradients that are in memory at a time


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class EdgeScores(Labelled):
    """Scores [upstream receiver], or [upstream receiver prompt]: 0 where there is no edge.

    `exists` [upstream receiver] is True for edges: pairs whose upstream component comes before the receiver.
    """

    exists: Bool[np.ndarray, "u w"]
    clean_metric: np.ndarray
    corrupted_metric: np.ndarray

    def top_edges(self, k: int = 10) -> list[tuple[str, str, float]]:
        """The k edges of largest absolute score: upstream, receiver and score (the mean over prompts)."""
        scores = Labelled(self.values.mean(-1) if self.values.ndim == 3 else self.values, self.axes[:2], self.labels)
        return [(labels["upstream"], labels["receiver"], score) for labels, score in scores.strongest(k)]


@on_any_mesh
def edge_attribution_patch(
    model: HookedTransformer, clean: Any, corrupt: Any, metric_fn: Callable[[Float[Array, "b p v"]], Array], *,
    ig_steps: int = 1, attention_mask: Any = None,
) -> EdgeScores:  # fmt: skip
    """How much `metric_fn` would rise, to first order, if one component read the clean output of another.

    The arguments are those of `attribution_patch`. Scores are summed over positions, and over prompts unless the metric
    returns one number per prompt. With `ig_steps`, the gradient is the mean over runs whose embeddings lie between the
    corrupted and the clean ones (EAP-IG, Hanna et al. 2024, arXiv 2403.17806), with one backward pass for each.

    The edges into a receiver sum to the attribution of the residual stream before it, and the edges out of a component
    to the attribution of its output. Scores are products of two matrices that are computed a few positions at a time,
    so the only additional memory is that of the scores.

    Raises:
        ValueError: The positions of the inputs do not correspond, or `ig_steps` or the shape of the metric is invalid.
        TypeError: The metric cannot be differentiated.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> scores = edge_attribution_patch(model, [[1, 2, 3]], [[1, 5, 3]], lambda logits: logits[0, -1, 4])
        >>> scores.axes, scores.shape, scores.labels["upstream"]
        (('upstream', 'receiver'), (7, 15), ['embed', 'a0.h0', 'a0.h1', 'm0', 'a1.h0', 'a1.h1', 'm1'])
    """
    require_additive_residual(model.cfg)
    require_linear_heads(model.cfg)
    steps = path_steps(ig_steps)
    inputs = read_pair(model, attention_mask, clean=clean, corrupt=corrupt)
    goal, start = backward.Start.pair(model, *inputs)
    final, clean_values = backward.run_layers(model, goal, probed=INPUTS, wanted=OUTPUTS)
    readout = backward.Readout.of(model, metric_fn, inputs[1])
    corrupted_values, total = None, None
    for run, value, gradient in backward.runs_along(model, start, goal, steps, readout, probed=INPUTS, wanted=OUTPUTS):
        if corrupted_values is None:
            corrupted_values, corrupted_metric = run.values, value
        pulled = gradient, run.derivatives, run.values, start.mask
        _, gradients = backward.pull_back(model, *pulled, reduce=backward.all_gradients)
        ends, outputs = (goal.residual - start.residual, gradient), (clean_values, corrupted_values)
        added = scores(model, ends, outputs, run.values, gradients, per_prompt=value.ndim == 1)
        total = added if total is None else total + added
        del run
    graph = Graph.of(model.cfg)
    values = np.moveaxis(np.where(graph.exists, on_host(total) / len(steps), 0), 0, -1)
    labels = {"upstream": graph.upstream, "receiver": graph.receivers}
    if corrupted_metric.ndim:
        labels |= {"prompt": [str(prompt) for prompt in range(values.shape[-1])]}
    else:
        values = values[..., 0]
    metrics = (on_host(value) for value in (readout(final), corrupted_metric))
    return EdgeScores(values, tuple(labels), labels, graph.exists, *metrics)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The components of a model in execution order, and which pairs are edges."""

    upstream: list[str]
    receivers: list[str]
    exists: Bool[np.ndarray, "u w"]

    @classmethod
    def of(cls, cfg: Config) -> "Graph":
        """The graph of a model. An edge exists if its component writes before its receiver reads."""
        written, read = {"embed": 0}, {}
        kv = "h" if cfg.n_key_value_heads == cfg.n_heads else "kv"
        for layer in range(cfg.n_layers):
            time = 1 + 4 * layer
            read |= {f"a{layer}.h{head}<q>": time for head in range(cfg.n_heads)}
            read |= {f"a{layer}.{kv}{head}<{of}>": time for of in "kv" for head in range(cfg.n_key_value_heads)}
            written |= {f"a{layer}.h{head}": time + 1 for head in range(cfg.n_heads)}
            if not cfg.attn_only:
                read[f"m{layer}"] = time if cfg.parallel_attn_mlp else time + 2
                written[f"m{layer}"] = time + 3
        read["logits"] = 1 + 4 * cfg.n_layers
        exists = np.array(list(written.values()))[:, None] < np.array(list(read.values()))
        return cls(list(written), list(read), exists)


# --- the two matrices, a few rows at a time


@compiled
def scores(
    model: HookedTransformer, ends: tuple[Array, Array], outputs: tuple[ByStretch, ByStretch], run: ByStretch,
    gradients: ByStretch, *, per_prompt: bool,
) -> Float[Array, "b u w"]:  # fmt: skip
    """The product of every component's output difference with the gradient at every receiver's input, summed over rows.

    `ends` are the difference of the embeddings and the gradient after the last layer. `outputs` are those of the clean
    and the corrupted run. `run` holds the values of the run in which the gradients were taken.
    """
    n_prompts, n_positions, d_model = ends[0].shape
    graph, blocks = Graph.of(model.cfg), [stack for _, stack in backward.layer_stretches(model)]
    bytes_per_row = d_model * ends[0].dtype.itemsize * sum(graph.exists.shape)
    segment = n_positions if per_prompt else n_prompts * n_positions
    size = min(segment, max(1, CHUNK_BYTES // bytes_per_row))
    ends = jax.tree.map(lambda x: x.reshape(-1, d_model), ends)
    layers = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), (*outputs, run, gradients))

    def add_chunk(total, chunk):
        first, low, high, prompt = chunk
        rows = first + jnp.arange(size)
        counted = (rows >= low) & (rows < high)  # the last chunk of a segment overlaps another
        difference, gradient = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size, 0), ends)
        chunk_of_layers = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size, 1), layers)
        clean, corrupted, run, gradients = chunk_of_layers
        gradient = jnp.where(counted[:, None], gradient, 0)
        gradients = jax.tree.map(lambda x: jnp.where(counted.reshape(-1, *(1,) * (x.ndim - 2)), x, 0), gradients)
        pairs, runs = zip(blocks, clean, corrupted, strict=True), zip(blocks, run, gradients, strict=True)
        written = [difference, *(jax.lax.map(output_differences, stretch) for stretch in pairs)]
        read = [*(jax.lax.map(input_gradients, stretch) for stretch in runs), gradient]
        # A contraction over one axis is twice as fast on CPUs as over two.
        written, read = (jnp.concatenate([x.reshape(-1, size * d_model) for x in arrays]) for arrays in (written, read))
        return total.at[prompt].add(jnp.einsum("ui,wi->uw", written, read, preferred_element_type=total.dtype)), None

    total = wide(jnp.zeros((n_prompts if per_prompt else 1, *graph.exists.shape), ends[0].dtype))
    return jax.lax.scan(add_chunk, total, _chunks(len(ends[0]), segment, size))[0]


def _chunks(n_rows: int, segment: int, size: int) -> np.ndarray:
    """Chunks of `size` rows that cover all segments: first row, the range of rows that are counted, and segment."""
    return np.array([
        (min(low, n_rows - size), low, min(low + size, end), end // segment - 1)
        for end in range(segment, n_rows + 1, segment) for low in range(end - segment, end, size)
    ], np.int32)  # fmt: skip


def output_differences(layer: tuple[Block, dict[str, Array], dict[str, Array]]) -> Float[Array, "u r d"]:
    """The output of each head, and of the MLP, of a layer in the clean run minus that in the corrupted run.

    If a norm follows attention, its scale differs between the runs, and so does the scaled b_O. Each head gets an equal
    share of this difference, so that the heads sum to the output of attention. Equal runs differ by exactly 0, because
    the difference of the scaled values is written as a sum of products with differences.
    """
    block, clean, corrupted = layer
    norm, attn = LinearNorm.at(block.ln1_post), block.attn
    (inverse, z), (inverse_corrupted, z_corrupted) = map(_inverse_scale_and_z, (clean, corrupted))
    change = inverse - inverse_corrupted
    scaled = (z - z_corrupted) * inverse[..., None] + z_corrupted * change[..., None]
    heads = jnp.einsum("rnh,nhd->nrd", scaled, attn.updated("W_O"))
    if attn.b_O is not None:
        heads = heads + change * attn.b_O / len(heads)
    heads = norm.apply(heads)
    mlp = [(clean["hook_mlp_out"] - corrupted["hook_mlp_out"])[None]] if block.mlp else []
    return jnp.concatenate((heads, *mlp))


def _inverse_scale_and_z(values):
    """One over the scale of the norm after attention, [r 1], and z."""
    z = values["attn.hook_z"]
    inverse = 1 / values["ln1_post.hook_scale"] if "ln1_post.hook_scale" in values else jnp.ones_like(z[:, 0, :1])
    return inverse, z


def input_gradients(layer: tuple[Block, dict[str, Array], dict[str, Array]]) -> Float[Array, "w r d"]:
    """The gradients with respect to the residual stream, through the queries, keys, values and MLP of a layer."""
    block, run, gradients = layer
    _, through_norm = jax.vjp(lambda x: block.ln1(x[None], Tap())[0], run["hook_resid_pre"])
    read = [
        jnp.einsum("rnh,ndh->nrd", gradients[f"attn.hook_{of.lower()}"], block.attn.updated(f"W_{of}")) for of in "QKV"
    ]
    attention = jax.vmap(lambda gradient: through_norm(gradient)[0])(jnp.concatenate(read))
    return jnp.concatenate((attention, gradients["hook_mlp_in"][None])) if block.mlp else attention

"""Edge attribution patching: how much each component matters through what each later component reads of it.

The residual stream is a sum, so what one component writes can be patched in the input of a single other one. To first
order, for all pairs at once (Syed et al. 2023, arXiv 2310.10348):

    score = (what `upstream` writes in the clean run - in the corrupted run) · gradient by what `receiver` reads

    upstream     embed, a0.h0 … (heads), m0 … (MLPs)
    receiver     a0.h0<q>, a0.h0<k>, a0.h0<v> … (k and v per key/value head), m0 …, logits

What a component writes is what it adds to the residual stream: behind the norm after attention or MLP, where there is
one, at the scale that the norm has in the run. What it reads is the residual stream before the norm in front of it.

Axes: b batch, p position, r row (a position of a prompt), u upstream component, w receiver, n query head, k key/value
head, h d_head, d d_model, l layer of a stretch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlens.analysis.attribution import path_steps
from jaxlens.analysis.final_norm import FixedNorm
from jaxlens.analysis.labelled import Labelled
from jaxlens.analysis.linearise import (
    ByStretch,
    Readout,
    Start,
    along,
    program,
    pull_back,
    run_layers,
    stretches,
    themselves,
    wide,
)
from jaxlens.config import Config
from jaxlens.config_checks import check_adds_up, check_heads_are_linear
from jaxlens.hooks import Tap
from jaxlens.nn.block import Block
from jaxlens.transformer import HookedTransformer

READ = frozenset(("attn.hook_q", "attn.hook_k", "attn.hook_v", "hook_mlp_in"))
WRITTEN = frozenset(("hook_resid_pre", "attn.hook_z", "ln1_post.hook_scale", "hook_mlp_out"))
CHUNK_BYTES = 2**28  # of what components write and of gradients by what they read, at the positions held at once


@dataclasses.dataclass(frozen=True, repr=False)
class EdgeScores(Labelled):
    """Scores [upstream receiver], or [upstream receiver prompt]: zero where there is no edge.

    `exists` [upstream receiver] says which pairs are edges: those whose upstream component comes before the receiver.
    """

    exists: Bool[np.ndarray, "u w"]
    clean_metric: np.ndarray
    corrupted_metric: np.ndarray

    def top_edges(self, k: int = 10) -> list[tuple[str, str, float]]:
        """The k strongest edges, of either sign: upstream, receiver and score (the mean over prompts)."""
        scores = Labelled(self.values.mean(-1) if self.values.ndim == 3 else self.values, self.axes[:2], self.labels)
        return [(place["upstream"], place["receiver"], score) for place, score in scores.strongest(k)]


def edge_attribution_patch(
    model: HookedTransformer, clean: Any, corrupt: Any, metric_fn: Callable[[Float[Array, "b p v"]], Array], *,
    ig_steps: int = 1, attention_mask: Any = None,
) -> EdgeScores:  # fmt: skip
    """By how much `metric_fn` would rise, to first order, if a component read another's clean output.

    Arguments as for `attribution_patch`; scores are summed over positions, and over prompts unless the metric gives one
    number for each. With `ig_steps` the gradient is the mean over runs whose embeddings go from the corrupted ones
    towards the clean ones (EAP-IG, Hanna et al. 2024, arXiv 2403.17806), one backward pass for each.

    All edges into a receiver sum to the attribution of the residual stream that it reads; all edges out of a component
    to the attribution of what it writes. Scores come from two matrices that are made and multiplied a few positions at
    a time, so memory does not grow with the number of edges but for the scores themselves.

    Raises:
        ValueError: the inputs differ in shape or padding, `ig_steps` is not positive, or the metric is neither one
            number nor one for every prompt.
        TypeError: the metric cannot be differentiated.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> found = edge_attribution_patch(model, [[1, 2, 3]], [[1, 5, 3]], lambda logits: logits[0, -1, 4])
        >>> found.axes, found.shape, found.labels["upstream"]
        (('upstream', 'receiver'), (7, 15), ['embed', 'a0.h0', 'a0.h1', 'm0', 'a1.h0', 'a1.h1', 'm1'])
    """
    check_adds_up(model.cfg)
    check_heads_are_linear(model.cfg)
    steps = path_steps(ig_steps)
    goal, start = Start.pair(model, clean, corrupt, attention_mask)
    final, there = run_layers(model, goal, wanted=WRITTEN)
    readout = Readout.of(model, metric_fn, start)
    here, total = None, None
    for run, value, gradient in along(model, start, goal, steps, readout, probed=READ, wanted=WRITTEN):
        if here is None:
            here, corrupted_metric = run.values, value
        _, gradients = pull_back(model, gradient, run.derivatives, run.values, start.real, reduce=themselves)
        ends = goal.residual - start.residual, gradient
        found = scores(model, ends, there, here, run.values, gradients, per_prompt=value.ndim == 1)
        total = found if total is None else total + found
        del run
    graph = Graph.of(model.cfg)
    values = np.moveaxis(np.where(graph.exists, np.asarray(total) / len(steps), 0), 0, -1)
    labels = {"upstream": graph.upstream, "receiver": graph.receivers}
    if corrupted_metric.ndim:
        labels |= {"prompt": [str(prompt) for prompt in range(values.shape[-1])]}
    else:
        values = values[..., 0]
    metrics = (np.asarray(value) for value in (readout(final), corrupted_metric))
    return EdgeScores(values, tuple(labels), labels, graph.exists, *metrics)


@dataclasses.dataclass(frozen=True)
class Graph:
    """The components of a model in the order in which they act, and which of them come before which."""

    upstream: list[str]
    receivers: list[str]
    exists: Bool[np.ndarray, "u w"]

    @classmethod
    def of(cls, cfg: Config) -> "Graph":
        """Each component writes, and each receiver reads, at a time of its own; edges go forward in time."""
        written, read = {"embed": 0}, {}
        kv = "h" if cfg.n_key_value_heads == cfg.n_heads else "kv"
        for layer in range(cfg.n_layers):
            now = 1 + 4 * layer
            read |= {f"a{layer}.h{head}<q>": now for head in range(cfg.n_heads)}
            read |= {f"a{layer}.{kv}{head}<{of}>": now for of in "kv" for head in range(cfg.n_key_value_heads)}
            written |= {f"a{layer}.h{head}": now + 1 for head in range(cfg.n_heads)}
            if not cfg.attn_only:
                read[f"m{layer}"] = now if cfg.parallel_attn_mlp else now + 2
                written[f"m{layer}"] = now + 3
        read["logits"] = 1 + 4 * cfg.n_layers
        exists = np.array(list(written.values()))[:, None] < np.array(list(read.values()))
        return cls(list(written), list(read), exists)


# --- the two matrices, a few rows at a time


@program
def scores(
    model: HookedTransformer, ends: tuple[Array, Array], there: ByStretch, here: ByStretch, run: ByStretch,
    gradients: ByStretch, *, per_prompt: bool,
) -> Float[Array, "b u w"]:  # fmt: skip
    """The product of what every component writes with the gradient by what every receiver reads, summed over rows.

    `ends` are how far the embedding is moved, and the gradient where the layers end. `there` and `here` hold what the
    clean and the corrupted run write, `run` what the run reads that the gradients are of.
    """
    n_prompts, n_positions, d_model = ends[0].shape
    graph, blocks = Graph.of(model.cfg), [stack for _, stack in stretches(model)]
    n_held = d_model * ends[0].dtype.itemsize * sum(graph.exists.shape)
    segment = n_positions if per_prompt else n_prompts * n_positions
    size = min(segment, max(1, CHUNK_BYTES // n_held))
    ends = jax.tree.map(lambda x: x.reshape(-1, d_model), ends)
    layers = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), (there, here, run, gradients))

    def add(total, piece):
        first, low, high, prompt = piece
        rows = first + jnp.arange(size)
        counts = (rows >= low) & (rows < high)  # pieces overlap at the end
        moved, gradient = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size, 0), ends)
        there, here, run, gradients = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size, 1), layers)
        gradient = jnp.where(counts[:, None], gradient, 0)
        gradients = jax.tree.map(lambda x: jnp.where(counts.reshape(-1, *(1,) * (x.ndim - 2)), x, 0), gradients)
        written = [moved, *(by_layer(written_by, *of) for of in zip(blocks, there, here, strict=True))]
        read = [*(by_layer(read_by, *of) for of in zip(blocks, run, gradients, strict=True)), gradient]
        # one contracted axis instead of two: twice as fast on CPUs
        written, read = (jnp.concatenate([x.reshape(-1, size * d_model) for x in parts]) for parts in (written, read))
        return total.at[prompt].add(jnp.einsum("ui,wi->uw", written, read, preferred_element_type=total.dtype)), None

    total = wide(jnp.zeros((n_prompts if per_prompt else 1, *graph.exists.shape), ends[0].dtype))
    return jax.lax.scan(add, total, _pieces(len(ends[0]), segment, size))[0]


def _pieces(n_rows: int, segment: int, size: int) -> np.ndarray:
    """Pieces of `size` rows that cover every segment: first row, the rows from low to high that count, and segment."""
    return np.array([
        (min(low, n_rows - size), low, min(low + size, end), end // segment - 1)
        for end in range(segment, n_rows + 1, segment) for low in range(end - segment, end, size)
    ], np.int32)  # fmt: skip


def by_layer(function: Callable, *of_layers: Any) -> Array:
    """A function of one layer for all layers of a stretch, one after another."""
    return jax.lax.map(lambda layer: function(*layer), of_layers)


def written_by(block: Block, there: dict[str, Array], here: dict[str, Array]) -> Float[Array, "u r d"]:
    """By how much what each head, and the MLP, of a layer adds to the residual stream differs between two runs.

    Behind a norm, each head has its share of the bias in front of it, so that heads always add up to what attention
    adds.
    """
    norm, attn = FixedNorm.at(block.ln1_post), block.attn
    (share, z), (share_here, z_here) = (_before_norm(values) for values in (there, here))
    heads = jnp.einsum("rnh,nhd->nrd", z - z_here, attn.W_O)
    if attn.b_O is not None:
        heads = heads + (share - share_here) * attn.b_O / len(heads)
    heads = norm.of(heads)
    return jnp.concatenate((heads, (there["hook_mlp_out"] - here["hook_mlp_out"])[None])) if block.mlp else heads


def _before_norm(values):
    """One over the scale of the norm after attention, [r 1], and what heads gathered, divided by it."""
    z = values["attn.hook_z"]
    share = 1 / values["ln1_post.hook_scale"] if "ln1_post.hook_scale" in values else jnp.ones_like(z[:, 0, :1])
    return share, z * share[..., None]


def read_by(block: Block, run: dict[str, Array], gradients: dict[str, Array]) -> Float[Array, "w r d"]:
    """The gradient by the residual stream as queries, keys, values and the MLP of a layer read it."""
    _, through_norm = jax.vjp(lambda x: block.ln1(x[None], Tap(()))[0], run["hook_resid_pre"])
    read = [
        jnp.einsum("rnh,ndh->nrd", gradients[f"attn.hook_{of.lower()}"], getattr(block.attn, f"W_{of}")) for of in "QKV"
    ]
    attention = jax.vmap(lambda gradient: through_norm(gradient)[0])(jnp.concatenate(read))
    return jnp.concatenate((attention, gradients["hook_mlp_in"][None])) if block.mlp else attention

"""Direct path patching: the effect of one component's output through the input of a single later component.

Patching a head's output changes everything after it. Direct path patching changes the input of a single receiver (a
head's queries, keys or values, an MLP, or the logits). The difference between the sender's output in the clean and in
the corrupted run is added to the receiver's copy of the residual stream (Goldowsky-Dill et al. 2023, arXiv 2304.05969;
Wang et al. 2022, arXiv 2211.00593). Every pair of sender and receiver is a cell of one sweep (sweep.py).

Axes: s sender, b batch, p position, d d_model, n query head, k key/value head, h d_head, l layer, v vocabulary.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import on_host
from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.analysis.inputs import read_pair
from jaxlens.analysis.interventions.activation_patching import MetricFunction, Patched, metric_axes
from jaxlens.analysis.interventions.cells import Cells
from jaxlens.analysis.interventions.sweep import PaddedSetter, SweepOptions, sweep
from jaxlens.model.lengths import cut
from jaxlens.model.request import ModelInput
from jaxlens.model.transformer import HookedTransformer
from jaxlens.weights.circuits import require_additive_residual, require_linear_heads

Component = Literal["q", "k", "v", "mlp", "logits"]
Node = tuple[int, int] | int
"""A head as (layer, head), or an MLP as its layer."""

RECEIVERS = {"q": "q_input", "k": "k_input", "v": "v_input", "mlp": "mlp_in", "logits": "resid_post"}
"""The input of each kind of receiver."""


@on_any_mesh
def path_patch(
    model: HookedTransformer, corrupted: Any, clean: Any, metric: MetricFunction, component: Component = "q",
    senders: Sequence[Node] | None = None, receivers: Sequence[Node] | None = None, **options: Unpack[SweepOptions],
) -> Patched:  # fmt: skip
    """The metric of the corrupted run if a single receiver reads the clean output of a sender, for every pair.

    `senders` are heads `(layer, head)` and MLPs `layer`; by default all heads. `receivers` are heads for "q", "k" and
    "v" (key/value heads for the latter two), layers for "mlp", and none for "logits"; by default all that exist. The
    receiver's norm is recomputed. For a receiver before its sender, the metric is that of the corrupted run.

    Returns:
        The metric with the axes ("sender", "receiver"), and "prompt" if it returns one number per prompt.

    Raises:
        ValueError: The model does not have a component, sender or receiver, or the positions of the runs do not
            correspond.

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
    require_additive_residual(cfg)
    if component in ("q", "k", "v"):
        require_linear_heads(cfg)
    if component not in RECEIVERS or (component == "mlp" and cfg.attn_only):
        raise ValueError(f"component is {component!r}; expected one of {list(RECEIVERS)} that the model has")
    n_heads = {"q": cfg.n_heads, "k": cfg.n_key_value_heads, "v": cfg.n_key_value_heads}.get(component)
    all_heads = list(itertools.product(range(cfg.n_layers), range(cfg.n_heads)))
    existing = list(itertools.product(range(cfg.n_layers), range(n_heads))) if n_heads else list(range(cfg.n_layers))
    existing = [cfg.n_layers - 1] if component == "logits" else existing
    senders = check_nodes("sender", all_heads if senders is None else senders, [*all_heads, *range(cfg.n_layers)])
    receivers = check_nodes("receiver", existing if receivers is None else receivers, existing)

    runs = read_pair(model, options.get("attention_mask"), corrupted=corrupted, clean=clean)
    start, corrupted_outputs = _outputs(model, runs[0], senders, metric)
    goal, clean_outputs = _outputs(model, runs[1], senders, metric)
    differences = clean_outputs - corrupted_outputs
    indices = np.array([
        (*np.atleast_1d(receiver), sender if _reaches(cfg, senders[sender], component, receiver) else -1)
        for sender, receiver in itertools.product(range(len(senders)), receivers)
    ], np.int32)  # fmt: skip
    cells = Cells.at(cfg, RECEIVERS[component], indices)
    setter = PaddedSetter(_add_to_head if n_heads else _add, differences=differences)
    values = sweep(model, runs[0], cells, setter, None, {"": metric}, **options).cells[""]
    labels = {"sender": [_label(node) for node in senders], "receiver": [_label(node, component) for node in receivers]}
    values = values.reshape(len(senders), len(receivers), *values.shape[1:])
    labels |= metric_axes(values.shape[2:])
    return Patched(values, tuple(labels), labels, start, goal)


def check_nodes(what: str, nodes: Sequence[Node], existing: Sequence[Node]) -> list[Node]:
    """The nodes as Python integers, after checking that each of them exists and that there is at least one."""
    nodes = [tuple(map(int, node)) if np.ndim(node) else int(node) for node in nodes]
    if unknown := [node for node in nodes if node not in existing]:
        raise ValueError(f"there is no {what} {unknown[0]}; a head is (layer, head), an MLP its layer, both from 0")
    if not nodes:
        raise ValueError(f"the list of {what}s is empty; give at least one, or None for all")
    return nodes


def _reaches(cfg: Any, sender: Node, component: Component, receiver: Node) -> bool:
    """Whether the sender writes to the residual stream before the receiver reads it."""
    is_head = isinstance(sender, tuple)
    written, read = sender[0] if is_head else sender, receiver[0] if isinstance(receiver, tuple) else receiver
    same_layer = component == "logits" or (component == "mlp" and is_head and not cfg.parallel_attn_mlp)
    return written < read or (written == read and same_layer)


def _outputs(
    model: HookedTransformer, run: ModelInput, senders: list[Node], metric: MetricFunction
) -> tuple[np.ndarray, Float[Array, "s b p d"]]:
    """The metric of a run, and the outputs of the senders in it."""
    sites = ("hook_mlp_out", "ln1_post.hook_scale", "attn.hook_z")
    options = {"names_filter": lambda name: name.endswith(sites), "attention_mask": run.mask}
    logits, cache = model.run_with_cache(run.tokens, **options)
    heads = [node for node in senders if isinstance(node, tuple)]
    written = {node: cache["mlp_out", node] for node in senders if not isinstance(node, tuple)}
    if heads:
        results = cache.stack_head_results(layer=-1)
        written |= {(layer, head): results[layer * model.cfg.n_heads + head] for layer, head in heads}
    return on_host(metric(cut(logits, run))), jnp.stack([written[node] for node in senders])


def _add(activation: Array, index: Array, source: Array, differences: Float[Array, "s b p d"]) -> Array:
    """Adds a sender's difference to the input of an MLP or of the logits. An index is (layer, sender)."""
    return activation + jnp.where(index[1] < 0, 0, differences[index[1]]).astype(activation.dtype)


def _add_to_head(activation: Array, index: Array, source: Array, differences: Float[Array, "s b p d"]) -> Array:
    """Adds a sender's difference to the input of one head. An index is (layer, head, sender)."""
    difference = jnp.where(index[2] < 0, 0, differences[index[2]]).astype(activation.dtype)
    return activation.at[:, :, index[1]].add(difference)


def _label(node: Node, component: Component | None = None) -> str:
    if component == "logits":
        return "logits"
    name = f"L{node[0]}H{node[1]}" if isinstance(node, tuple) else f"L{node} mlp"
    return f"{name} {component}" if component in ("q", "k", "v") else name

"""Attribution patching: the first-order effect of activation patching, for all activations at once.

Activation patching replaces one activation of the corrupted run by its value in the clean run. One backward pass gives
the derivative of the metric with respect to all activations of the corrupted run, and to first order

    attribution = (clean activation - corrupted activation) · gradient of the metric in the corrupted run

Nanda 2023 (neelnanda.io/mechanistic-interpretability/attribution-patching); Syed et al. 2023 (arXiv 2310.10348);
Hanna et al. 2024 (arXiv 2403.17806) for `ig_steps`; Kramár et al. 2024 (AtP*, arXiv 2403.00745) for `exact_softmax`.

Axes: b batch, p (query) position, s source position, d d_model, n query head, k key/value head, g query heads per
key/value head, h d_head, m d_mlp, e expert, l layer.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import on_host, wide
from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.analysis.attribution import backward
from jaxlens.analysis.attribution.exact_softmax import ATTENTION_INPUTS, PATTERN, effect_of_keys, effect_of_queries
from jaxlens.analysis.inputs import read_pair
from jaxlens.analysis.interventions.activation_patching import position_labels
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.errors import ActivationNotFound
from jaxlens.hooks.names import get_act_name, matching, split_name
from jaxlens.hooks.table import sites
from jaxlens.model.transformer import HookedTransformer

EMBED = "embed"
HOOK_Q, HOOK_K = "attn.hook_q", "attn.hook_k"
AXIS_NAMES = {
    "b": "prompt", "p": "pos", "n": "head", "k": "head", "m": "neuron", "f": "neuron", "x": "neuron", "e": "expert",
    "s": "src_pos",
}  # fmt: skip
"""The axes of an attribution. Other axes, such as d_model and d_head, are summed over."""


class Attributions(Mapping):
    """Attributions by the name of the activation, and the metric of both runs.

    `attributions["z"]` is a `Labelled` array with axes such as layer, pos and head, and `attributions["z", 5]` that of
    layer 5. `attributions["z"].sum("pos")` is the attribution of patching a head at all positions. A key without
    attributions raises ActivationNotFound.
    """

    def __init__(self, parts: dict[str, list[Labelled]], clean_metric: Array, corrupted_metric: Array):
        self._parts, self.clean_metric, self.corrupted_metric = parts, clean_metric, corrupted_metric

    def __getitem__(self, key: str | tuple[str, int]) -> Labelled:
        name, *layer = key if isinstance(key, tuple) else (key,)
        if name not in self._parts:
            raise ActivationNotFound(f"there are no attributions of {name!r}, only of {list(self)}")
        parts = [part for part in self._parts[name] if not layer or str(layer[0]) in part.labels.get("layer", ())]
        if not parts:
            raise ActivationNotFound(f"there are no attributions of {name!r} in layer {layer[0]}")
        if len(parts) > 1:
            axes = "; ".join(f"{list(part.axes)} in layers {', '.join(part.labels['layer'])}" for part in parts)
            raise ActivationNotFound(f"the axes of {name!r} differ between layers: {axes}. Use ({name!r}, layer)")
        return parts[0].at(layer=layer[0]) if layer else parts[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def top_nodes(self, k: int = 10) -> list[tuple[str, dict[str, str], float]]:
        """The k attributions of largest absolute value: activation, labels and value."""
        nodes = [(name, *top) for name, parts in self._parts.items() for part in parts for top in part.strongest(k)]
        return sorted(nodes, key=lambda node: -abs(node[-1]))[:k]

    def __repr__(self) -> str:
        strongest = "".join(
            f"\n  {value:+.4g}  {name}, " + " ".join(f"{axis} {label}" for axis, label in labels.items())
            for name, labels, value in self.top_nodes(5)
        )
        return f"Attributions of {', '.join(self)}{strongest}"


@on_any_mesh
def attribution_patch(
    model: HookedTransformer, clean: Any, corrupt: Any, metric_fn: Callable[[Float[Array, "b p v"]], Array],
    nodes: str | Sequence[str] = ("z", "mlp_out"), *, ig_steps: int = 1, exact_softmax: bool = False,
    attention_mask: Any = None,
) -> Attributions:  # fmt: skip
    """How much `metric_fn` would rise, to first order, if each activation of the corrupted run had its clean value.

    `nodes` are names of layer activations as `get_act_name` takes them: "resid_pre", "attn_out", "mlp_out", "z"
    (heads), "q", "k", "v", "pattern", "post" (neurons), …; or "embed", the input of the first layer. If `metric_fn`
    returns one number, attributions are those of patching all prompts at once. If it returns one number per prompt,
    attributions have a last axis "prompt". `clean` and `corrupt` are prompts or tokens [b p] whose positions
    correspond, the clean ones first; `activation_patch` takes the corrupted ones first, as TransformerLens does.
    Exchange them for the effect of noising.

    With `ig_steps`, the gradient is the mean over that many runs whose embeddings lie between the corrupted and the
    clean ones (integrated gradients). That is often closer to the effect of patching. With `exact_softmax`, for "q" and
    "k", the attention pattern with the clean query or key is computed instead of linearized; the rest stays linear.

    Hooks on the model act in both runs. The cost is two forwards and one backward pass without weight gradients. A new
    metric recompiles nothing of the model.

    Raises:
        ValueError: The positions of the inputs do not correspond, `ig_steps` is not positive, `exact_softmax` is given
            without "q" or "k", or `metric_fn` returns neither one number nor one per prompt.
        TypeError: The metric cannot be differentiated.
        HookError: A node is not an activation of a layer of this model.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> scores = attribution_patch(model, [[1, 2, 3]], [[1, 5, 3]], lambda logits: logits[0, -1, 4])
        >>> scores["z"].axes, scores["z"].shape, scores["mlp_out"].sum("pos").shape
        (('layer', 'pos', 'head'), (2, 3, 2), (2,))
    """
    names = _sites_of_nodes(model, nodes)
    steps = path_steps(ig_steps)
    exact = _exact_sites(model, names) if exact_softmax else frozenset()
    inputs = read_pair(model, attention_mask, clean=clean, corrupt=corrupt)
    goal, start = backward.Start.pair(model, *inputs)
    attributed = frozenset(names.values()) - {EMBED}
    probed = attributed - exact | ({PATTERN} if exact else set())
    wanted = attributed | (set(ATTENTION_INPUTS) if exact else set())

    final, clean_values = backward.run_layers(model, goal, probed=probed, wanted=wanted)
    readout = backward.Readout.of(model, metric_fn, inputs[1])
    corrupted_values, total = None, None
    for run, value, gradient in backward.runs_along(model, start, goal, steps, readout, probed=probed, wanted=wanted):
        if corrupted_values is None:
            corrupted_values, corrupted_metric = run.values, value
        contract = Contract(attributed, exact, per_prompt=value.ndim == 1)
        data = tuple(zip(clean_values, corrupted_values, strict=True))
        added = backward.pull_back(model, gradient, run.derivatives, data, start.mask, reduce=contract)
        added = jax.tree.map(wide, added)
        total = added if total is None else jax.tree.map(jnp.add, total, added)
        del run
    gradient, attributions = jax.tree.map(lambda summed: on_host(summed) / len(steps), total)
    label = Labeller(model, position_labels(model, inputs[1]), corrupted_metric.ndim == 1)
    embed = np.einsum("bpd,bpd->bp", gradient, on_host(wide(goal.residual - start.residual)))
    parts = {
        name: label.of_embedding(embed) if site == EMBED else label.of_layers(site, attributions)
        for name, site in names.items()
    }
    return Attributions(parts, readout(final), corrupted_metric)


def path_steps(ig_steps: int) -> Float[np.ndarray, " steps"]:
    """The points between the corrupted (0) and the clean (1) embedding at which gradients are taken."""
    if not isinstance(ig_steps, int | np.integer) or ig_steps < 1:
        raise ValueError(f"ig_steps is {ig_steps!r}; expected 1, for the gradient of the corrupted run, or more")
    return np.arange(ig_steps) / ig_steps


def _sites_of_nodes(model: HookedTransformer, nodes: str | Sequence[str]) -> dict[str, str]:
    """The site of every node, by the name that the caller gave."""
    sites_of_nodes = {}
    for name in [nodes] if isinstance(nodes, str) else nodes:
        if name in (EMBED, f"hook_{EMBED}"):
            sites_of_nodes[name] = EMBED
        else:
            full = name if name.startswith("blocks.*.") else get_act_name(name, "*")
            sites_of_nodes[name] = split_name(matching(model.cfg, full)[0])[0]
    if not sites_of_nodes:
        raise ValueError('nodes is empty; name at least one activation, such as "z"')
    return sites_of_nodes


def _exact_sites(model: HookedTransformer, names: Mapping[str, str]) -> frozenset[str]:
    """The sites whose effect on the pattern is computed exactly."""
    exact = {HOOK_Q, HOOK_K} & set(names.values())
    if not exact:
        raise ValueError(f'exact_softmax applies to "q" and "k", but the nodes are {list(names)}')
    if model.list_hooks():
        raise ValueError("exact_softmax computes patterns without the model's hooks; call model.reset_hooks() first")
    return frozenset(exact)


@dataclasses.dataclass(frozen=True)
class Contract:
    """Computes the attributions of a layer: gradient times difference of the two runs, summed over unnamed axes.

    The effect of the sites in `exact` is computed from the gradient with respect to the pattern. Attributions are
    summed over prompts, unless `per_prompt` is set.
    """

    sites: frozenset[str]
    exact: frozenset[str]
    per_prompt: bool

    def __call__(self, layers, gradients, row, block, info) -> dict[str, Float[Array, "..."]]:
        clean, corrupted = row
        attributions = {
            site: _product(axes_of(block.cfg, layers, site), gradients[site], clean[site], corrupted[site])
            for site in sorted(self.sites - self.exact) if site in gradients
        }  # fmt: skip
        for site in self.exact:
            effect = effect_of_queries if site == HOOK_Q else effect_of_keys
            attributions[site] = effect(gradients[PATTERN], clean, corrupted, block.attn, info)
        return attributions if self.per_prompt else jax.tree.map(lambda value: jnp.sum(value, axis=0), attributions)


def axes_of(cfg, layers: tuple[int, ...], site: str) -> list[str]:
    """The axis letters of an activation in these layers."""
    return sites(cfg)[f"blocks.{layers[0]}.{site}"].axes.split()


def _product(letters: list[str], gradient, clean, corrupted):
    difference = jnp.where(clean == corrupted, 0, clean - corrupted)  # masked scores are -inf in both runs
    unnamed = [i for i, letter in enumerate(letters) if letter not in AXIS_NAMES]
    return jnp.sum(wide(gradient) * difference, axis=unnamed)


@dataclasses.dataclass(frozen=True, eq=False)
class Labeller:
    """Makes `Labelled` arrays from arrays whose axes are given as letters."""

    model: HookedTransformer
    positions: list[str]
    per_prompt: bool

    def of_embedding(self, values: Float[np.ndarray, "b p"]) -> list[Labelled]:
        """The attributions of the input of the first layer."""
        return [self(values if self.per_prompt else values.sum(0), "b p")]

    def of_layers(self, site: str, attributions: backward.ByStretch) -> list[Labelled]:
        """The attributions of a site, with one array for all layers in which it has the same axes."""
        groups: dict[str, dict[int, np.ndarray]] = {}
        for (stretch, _), values in zip(backward.layer_stretches(self.model), attributions, strict=True):
            if site in values:
                letters = " ".join(axes_of(self.model.cfg, stretch.layers, site))
                groups.setdefault(letters, {}).update(zip(stretch.layers, values[site], strict=True))
        return [self(np.stack(list(rows.values())), f"l {letters}", list(rows)) for letters, rows in groups.items()]

    def __call__(self, values: np.ndarray, letters: str, layers: Sequence[int] = ()) -> Labelled:
        """The array with the names and labels of its axes. The axis "prompt", if it is kept, comes last."""
        names = dict(AXIS_NAMES, l="layer", **({"p": "dest_pos"} if "s" in letters else {}))
        axes = [names[letter] for letter in letters.split() if letter in names and (self.per_prompt or letter != "b")]
        n_positions = len(self.positions)  # the others are padding to the length of the program
        values = values[tuple(slice(n_positions if axis.endswith("pos") else None) for axis in axes)]
        if self.per_prompt:
            values = np.moveaxis(values, axes.index("prompt"), -1)
            axes = [axis for axis in axes if axis != "prompt"] + ["prompt"]
        labels = {axis: [str(index) for index in range(size)] for axis, size in zip(axes, values.shape, strict=True)}
        labels |= {axis: self.positions for axis in axes if axis.endswith("pos")}
        labels |= {"layer": [str(layer) for layer in layers]} if "layer" in axes else {}
        return Labelled(values, tuple(axes), labels)

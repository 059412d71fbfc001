"""Attribution patching: what activation patching would do, to first order, for every place at once.

Patching moves one activation of the corrupted run to where it is in the clean run. The derivative of the metric by that
move, taken where it begins, is known for all activations after a single backward pass:

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

from jaxlens.analysis.interventions import position_labels
from jaxlens.analysis.labelled import Labelled
from jaxlens.analysis.linearise import ByStretch, Readout, Start, along, pull_back, run_layers, stretches, wide
from jaxlens.analysis.softmax import ATTENTION_READS, PATTERN, effect_of_keys, effect_of_queries
from jaxlens.errors import ActivationNotFound
from jaxlens.hook_table import matching, sites, split_name
from jaxlens.names import get_act_name
from jaxlens.transformer import HookedTransformer

AXIS_NAMES = {
    "b": "prompt", "p": "pos", "n": "head", "k": "head", "m": "neuron", "f": "neuron", "x": "neuron", "e": "expert",
    "s": "src_pos",
}  # fmt: skip
"""The axes of an attribution. Along the others, such as d_model, an activation is one thing."""


class Attributions(Mapping):
    """Attributions by the name of the activation they are of, and the metric of the two runs.

    `attributions["z"]` is a `Labelled` array with axes such as layer, pos and head, `attributions["z", 5]` that of one
    layer. Summed over positions, `attributions["z"].sum("pos")`, it is of patching a head at all of them.
    """

    def __init__(self, parts: dict[str, list[Labelled]], clean_metric: Array, corrupted_metric: Array):
        self._parts, self.clean_metric, self.corrupted_metric = parts, clean_metric, corrupted_metric

    def __getitem__(self, key: str | tuple[str, int]) -> Labelled:
        """
        Raises:
            ActivationNotFound: there are no attributions of that activation, or none in that layer.
        """
        name, *layer = key if isinstance(key, tuple) else (key,)
        if name not in self._parts:
            raise ActivationNotFound(f"there are no attributions of {name!r}; there are those of {list(self)}")
        parts = [part for part in self._parts[name] if not layer or str(layer[0]) in part.labels.get("layer", ())]
        if not parts:
            raise ActivationNotFound(f"there are no attributions of {name!r} in layer {layer[0]}")
        if len(parts) > 1:
            found = "; ".join(f"{list(part.axes)} in layers {', '.join(part.labels['layer'])}" for part in parts)
            raise ActivationNotFound(f"{name!r} has other axes in other layers: {found}. Ask for ({name!r}, layer)")
        return parts[0].at(layer=layer[0]) if layer else parts[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def top_nodes(self, k: int = 10) -> list[tuple[str, dict[str, str], float]]:
        """The k strongest attributions, of either sign: activation, place and value."""
        found = [(name, *top) for name, parts in self._parts.items() for part in parts for top in part.strongest(k)]
        return sorted(found, key=lambda node: -abs(node[-1]))[:k]

    def __repr__(self) -> str:
        strongest = "".join(
            f"\n  {value:+.4g}  {name}, " + " ".join(f"{axis} {label}" for axis, label in place.items())
            for name, place, value in self.top_nodes(5)
        )
        return f"Attributions of {', '.join(self)}{strongest}"


def attribution_patch(
    model: HookedTransformer, clean: Any, corrupt: Any, metric_fn: Callable[[Float[Array, "b p v"]], Array],
    nodes: str | Sequence[str] = ("z", "mlp_out"), *, ig_steps: int = 1, exact_softmax: bool = False,
    attention_mask: Any = None,
) -> Attributions:  # fmt: skip
    """By how much `metric_fn` would rise, to first order, if each activation of the corrupted run were the clean one.

    `nodes` are activations of the layers as `get_act_name` knows them: "resid_pre", "attn_out", "mlp_out", "z" (the
    heads), "q", "k", "v", "pattern", "post" (the neurons), …; or "embed", what the layers start from. `metric_fn` gives
    one number, and then an attribution is of patching all prompts at once; or one number for every prompt, and then
    every prompt has its own attributions, on a last axis "prompt". `clean` and `corrupt` are prompts or tokens [b p]
    whose positions correspond; exchanged, they give the effect of noising.

    With `ig_steps` the gradient is the mean over that many runs, whose embeddings go from the corrupted ones towards
    the clean ones (integrated gradients): no derivative any more, but often closer to what patching does. With
    `exact_softmax`, for "q" and "k", the attention pattern is computed with the other query or key instead of being
    linearised; the rest of the way is linear still.

    Hooks on the model act in both runs. It takes two forwards and a backward pass that skips the weights; a new metric
    compiles nothing of the model.

    Raises:
        ValueError: the inputs differ in shape or padding; `ig_steps` is not positive; `exact_softmax` without "q" or
            "k"; or the metric is neither one number nor one for every prompt.
        TypeError: the metric cannot be differentiated.
        HookError: a node is no activation of a layer of this model.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> found = attribution_patch(model, [[1, 2, 3]], [[1, 5, 3]], lambda logits: logits[0, -1, 4])
        >>> found["z"].axes, found["z"].shape, found["mlp_out"].sum("pos").shape
        (('layer', 'pos', 'head'), (2, 3, 2), (2,))
    """
    names = _named_sites(model, nodes)
    steps = path_steps(ig_steps)
    exact = _computed_exactly(model, names) if exact_softmax else frozenset()
    goal, start = Start.pair(model, clean, corrupt, attention_mask)
    attributed = frozenset(names.values()) - {EMBED}
    probed = attributed - exact | ({PATTERN} if exact else set())
    wanted = attributed | (set(ATTENTION_READS) if exact else set())

    final, there = run_layers(model, goal, wanted=wanted)
    readout = Readout.of(model, metric_fn, start)
    here, total = None, None
    for run, value, gradient in along(model, start, goal, steps, readout, probed=probed, wanted=wanted):
        if here is None:
            here, corrupted_metric = run.values, value
        contract = Contract(attributed, exact, per_prompt=value.ndim == 1)
        data = tuple(zip(there, here, strict=True))
        found = jax.tree.map(
            wide, pull_back(model, gradient, run.derivatives, data, start.real, reduce=contract)
        )  # fmt: skip
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        del run
    gradient, found = jax.tree.map(lambda summed: np.asarray(summed) / len(steps), total)
    label = Labeller(model, position_labels(model, model._read_input(corrupt).tokens), corrupted_metric.ndim == 1)
    embed = np.einsum("bpd,bpd->bp", gradient, np.asarray(wide(goal.residual - start.residual)))
    parts = {name: label.of_layers(site, found) for name, site in names.items() if site != EMBED}
    parts = {name: parts.get(name) or label.of_embedding(embed) for name in names}
    return Attributions(parts, readout(final), corrupted_metric)


EMBED = "embed"
HOOK_Q, HOOK_K = "attn.hook_q", "attn.hook_k"


def path_steps(ig_steps: int) -> Float[np.ndarray, " steps"]:
    """Where on the way from the corrupted to the clean embedding gradients are taken; a single one at its beginning.

    Raises:
        ValueError: it is no positive whole number.
    """
    if not isinstance(ig_steps, int | np.integer) or ig_steps < 1:
        raise ValueError(f"ig_steps is {ig_steps!r}; wanted a number of steps, 1 for the gradient of the corrupted run")
    return np.arange(ig_steps) / ig_steps


def _named_sites(model: HookedTransformer, nodes: str | Sequence[str]) -> dict[str, str]:
    """The hook point in a block that every node stands for."""
    found = {}
    for name in [nodes] if isinstance(nodes, str) else nodes:
        if name in (EMBED, f"hook_{EMBED}"):
            found[name] = EMBED
        else:
            full = name if name.startswith("blocks.*.") else get_act_name(name, "*")
            found[name] = split_name(matching(model.cfg, full)[0])[0]
    if not found:
        raise ValueError("nodes is empty; name at least one activation, such as \"z\"")
    return found


def _computed_exactly(model: HookedTransformer, names: Mapping[str, str]) -> frozenset[str]:
    """The sites whose effect on the pattern is computed."""
    exact = {HOOK_Q, HOOK_K} & set(names.values())
    if not exact:
        raise ValueError(f'exact_softmax is about queries and keys; nodes are {list(names)}, without "q" and "k"')
    if model.list_hooks():
        raise ValueError("exact_softmax computes patterns itself, past the model's hooks; call model.reset_hooks()")
    return frozenset(exact)


@dataclasses.dataclass(frozen=True)
class Contract:
    """From gradients to attributions: the product with how far each activation is moved, summed over what is one thing.

    `exact` are sites whose effect is taken from the gradient by the pattern. Without `per_prompt`, prompts are summed.
    """

    sites: frozenset[str]
    exact: frozenset[str]
    per_prompt: bool

    def __call__(self, layers, gradients, row, block, at) -> dict[str, Float[Array, "..."]]:
        there, here = row
        found = {
            site: _product(axes_of(block.cfg, layers, site), gradients[site], there[site], here[site])
            for site in sorted(self.sites - self.exact) if site in gradients
        }  # fmt: skip
        for site in self.exact:
            effect = effect_of_queries if site == HOOK_Q else effect_of_keys
            found[site] = effect(gradients[PATTERN], there, here, block.attn, at)
        return found if self.per_prompt else {site: jnp.sum(value, axis=0) for site, value in found.items()}


def axes_of(cfg, layers: tuple[int, ...], site: str) -> list[str]:
    """The letters of an activation's axes in these layers."""
    return sites(cfg)[f"blocks.{layers[0]}.{site}"].axes.split()


def _product(letters: list[str], gradient, there, here):
    moved = jnp.where(there == here, 0, there - here)  # masked scores are -inf in both runs
    return jnp.sum(wide(gradient) * moved, axis=[i for i, letter in enumerate(letters) if letter not in AXIS_NAMES])


@dataclasses.dataclass(frozen=True)
class Labeller:
    """Makes labelled results of arrays whose axes are letters."""

    model: HookedTransformer
    positions: list[str]
    per_prompt: bool

    def of_embedding(self, values: Float[np.ndarray, "b p"]) -> list[Labelled]:
        """What was found where the layers start."""
        return [self(values if self.per_prompt else values.sum(0), "b p")]

    def of_layers(self, site: str, found: ByStretch) -> list[Labelled]:
        """What was found at a site, layers together where it has the same axes."""
        groups: dict[str, dict[int, np.ndarray]] = {}
        for (stretch, _), values in zip(stretches(self.model), found, strict=True):
            if site in values:
                letters = " ".join(axes_of(self.model.cfg, stretch.layers, site))
                groups.setdefault(letters, {}).update(zip(stretch.layers, values[site], strict=True))
        return [self(np.stack(list(rows.values())), f"l {letters}", list(rows)) for letters, rows in groups.items()]

    def __call__(self, values: np.ndarray, letters: str, layers: Sequence[int] = ()) -> Labelled:
        """An array with these axes, of which those without a name are gone; the prompts, if it has them, come last."""
        names = dict(AXIS_NAMES, l="layer", **({"p": "dest_pos"} if "s" in letters else {}))
        axes = [names[letter] for letter in letters.split() if letter in names and (self.per_prompt or letter != "b")]
        if self.per_prompt:
            values = np.moveaxis(values, axes.index("prompt"), -1)
            axes = [axis for axis in axes if axis != "prompt"] + ["prompt"]
        labels = {axis: [str(place) for place in range(size)] for axis, size in zip(axes, values.shape, strict=True)}
        labels |= {axis: self.positions for axis in axes if axis.endswith("pos")}
        labels |= {"layer": [str(layer) for layer in layers]} if "layer" in axes else {}
        return Labelled(values, tuple(axes), labels)

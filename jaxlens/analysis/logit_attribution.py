"""Direct logit attribution: how much each part of the model adds to the logit of a token, or to a logit difference.

Axes: c component, n head, d d_model, l layer; "..." is batch and position, whichever there are.

At the scale that the final norm had, a logit is linear in the residual stream, which is a sum: every term counts by its
dot product with one direction (Elhage et al. 2021, transformer-circuits.pub/2021/framework; Wang et al. 2022, arXiv
2211.00593). It leaves out what a part does through the parts after it.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.analysis.activation_cache import ActivationCache
from jaxlens.analysis.components import read
from jaxlens.analysis.final_norm import logit_constant, logit_direction
from jaxlens.analysis.terms import einsum
from jaxlens.optional import needed
from jaxlens.slices import Slice

Unit = Literal["component", "head", "neuron", "all", "layer"]

SUMS = ("ln1_sum.hook_scale", "ln2_sum.hook_scale")
HEADS = ("attn.hook_z", "ln1_post.hook_scale", *SUMS, "hook_resid_post")
NEURONS = (
    "mlp.hook_post", "mlp.hook_expert_weights", "mlp.shared.hook_post", "mlp.hook_shared_gate", "ln2_post.hook_scale",
    *SUMS, "hook_resid_post",
)  # fmt: skip
READS = {
    "component": ("hook_embed", "hook_attn_out", "hook_mlp_out", *SUMS),
    "head": HEADS,
    "neuron": NEURONS,
    "all": ("hook_embed", *HEADS, *NEURONS),
    "layer": ("hook_resid_pre", "hook_resid_mid", "hook_resid_post"),
}
"""The activations that a unit needs, besides the position embedding and the final norm's scale."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class DirectLogitAttribution:
    """What every component adds to a logit or a logit difference, in logits before a soft cap.

    `axes` names the axes of `values` after the first: "batch", "pos". The last row, "constant", is what no component
    adds: the unembedding's bias and the final norm's. The rows add up to the logits (those of unit "layer" do not: each
    is what all that came before it adds).
    """

    values: Float[Array, "c ..."]
    labels: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    unit: Unit = dataclasses.field(metadata={"static": True})
    axes: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @property
    def attribution(self) -> Float[Array, "c ..."]:
        """TransformerLens's name of `values`."""
        return self.values

    @property
    def total(self) -> Float[Array, "..."]:
        """The logit, or the logit difference."""
        return jnp.sum(self.values[-2:] if self.unit == "layer" else self.values, axis=0)

    def heads(self) -> Float[Array, "l n ..."]:
        """The heads alone, by layer and head.

        Raises:
            ValueError: this attribution is of other units.
        """
        layer_head = [label[1:].split("H") for label in self.labels if label.startswith("L") and "H" in label]
        if not layer_head:
            raise ValueError(f'this attribution is by {self.unit}; heads are in those by "head" or "all"')
        n_layers = int(layer_head[-1][0]) + 1
        return self.values[: len(layer_head)].reshape(n_layers, -1, *self.values.shape[1:])

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The components that add most, with the mean over batch and position of what they add."""
        means = self._means()
        return [(self.labels[row], float(means[row])) for row in np.argsort(-means, kind="stable")[:k]]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for every value: its component, its place along `axes`, and the "value"."""
        pandas = needed("pandas", "a DataFrame")

        places = np.indices(self.values.shape).reshape(self.values.ndim, -1)
        columns = {"component": np.asarray(self.labels, object)[places[0]]}
        columns |= dict(zip(self.axes, places[1:], strict=True))
        return pandas.DataFrame(columns | {"value": np.asarray(self.values).ravel()})

    def _means(self) -> Float[np.ndarray, " c"]:
        return np.asarray(self.values, np.float32).reshape(len(self.labels), -1).mean(1)

    def __repr__(self, n_shown: int = 10) -> str:
        """The components that matter most, of either sign."""
        means = self._means()
        shown = np.argsort(-np.abs(means), kind="stable")[:n_shown]
        over = f", mean over {' and '.join(self.axes)} {self.values.shape[1:]}" if self.axes else ""
        lines = [f"DirectLogitAttribution(by {self.unit}: {float(jnp.mean(self.total)):+.3f} logits{over})"]
        lines += [f"  {means[row]:+8.3f}  {self.labels[row]}" for row in shown]
        return "\n".join(lines + [f"  and {len(means) - len(shown)} more"] * (len(means) > len(shown)))


def direct_logit_attribution(
    model: Any, input: Any = None, answer_tokens: Any = None, incorrect_tokens: Any = None, unit: Unit = "component",
    pos: Any = -1, cache: ActivationCache | None = None, **how: Any,
) -> DirectLogitAttribution:  # fmt: skip
    """What each part of the model adds to the logits of `answer_tokens`, or to their distance from `incorrect_tokens`.

    Works on raw and processed weights alike. The rows add up to the logits before a soft cap.

    Args:
        model: a HookedTransformer.
        input: prompts or tokens to run it on, if no cache is given. Prompts are padded on the left, so that position
            -1 is the last token of each.
        answer_tokens: a string, a number, a list with one for each prompt, or an array [batch], [pos] or [batch pos].
        incorrect_tokens: as many, if logit differences are attributed.
        unit: what is told apart. "component": embeddings, attention and MLP of each layer; "head" and "neuron": these,
            and the rest as "remainder"; "all": heads, neurons, embeddings and biases; "layer": not parts, but the
            stream as it grows.
        pos: a position, several, or None for all.
        cache: of a run, to be read instead of running the model.
        how: how to run it: attention_mask, prepend_bos, padding_side.

    Raises:
        ValueError: no answer, no input, no such unit, or tokens that do not fit the prompts.
        ActivationNotFound: the cache lacks something; the message says what to cache.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> tokens = jnp.array([[1, 2, 3], [4, 5, 6]])
        >>> result = direct_logit_attribution(model, tokens, [7, 8], [9, 9], unit="head")
        >>> result.labels, result.heads().shape
        (('L0H0', 'L0H1', 'L1H0', 'L1H1', 'remainder', 'constant'), (2, 2, 2))
        >>> logits = model(tokens)[:, -1]
        >>> bool(jnp.allclose(result.total, logits[jnp.arange(2), jnp.array([7, 8])] - logits[:, 9], atol=1e-4))
        True
    """
    if unit not in get_args(Unit):
        raise ValueError(f"unit is {unit!r}; wanted one of {', '.join(map(repr, get_args(Unit)))}")
    if answer_tokens is None:
        raise ValueError("answer_tokens is missing: the tokens whose logits are attributed")
    if cache is None:
        cache, pos = _run(model, input, unit, pos, how), None
    elif how:
        raise ValueError(f"{', '.join(how)} would be of a run, but a cache was given and nothing is run")
    return _attribute(cache.with_model(model), answer_tokens, incorrect_tokens, unit, pos)


def _run(model: Any, input: Any, unit: Unit, pos: Any, how: dict[str, Any]) -> ActivationCache:
    """The cache of a run that keeps what the unit needs, at the positions that are asked for."""
    if input is None:
        raise ValueError("there is nothing to attribute: give an input to run the model on, or the cache of a run")
    if isinstance(input, list | tuple) and input and isinstance(input[0], str):
        how = {"padding_side": "left"} | how
    reads = (*READS[unit], "hook_pos_embed", "ln_final.hook_scale")
    return model.run_with_cache(input, names_filter=lambda name: name.endswith(reads), pos_slice=Slice(pos), **how)[1]


def _attribute(cache: ActivationCache, answers: Any, incorrect: Any, unit: Unit, pos: Any) -> DirectLogitAttribution:
    """The attribution of a run."""
    last = f"blocks.{cache.cfg.n_layers - 1}.hook_resid_post"
    rows = read(cache, ("ln_final.hook_scale", "hook_embed", last), Slice(pos)).shape[:-1]
    asked = cache.model, answers, incorrect, rows, cache.has_batch_dim
    values, labels = _by_unit(cache, unit, pos, logit_direction(*asked)[..., None])
    values = jnp.concatenate([values[..., 0], jnp.broadcast_to(logit_constant(*asked), (1, *rows))])
    axes = ("batch",) * cache.has_batch_dim + ("pos",) * (len(rows) > cache.has_batch_dim)
    return DirectLogitAttribution(values, (*labels, "constant"), unit, axes)


def _by_unit(cache: ActivationCache, unit: Unit, pos: Any, direction: Float[Array, "... d 1"]):
    """What each component is along a direction behind the final norm; no vector of d_model is made for it."""
    how = {"apply_ln": True, "pos_slice": pos, "return_labels": True, "project_output_onto": direction}
    match unit:
        case "component":
            return cache.decompose_resid(**how)
        case "head":
            return cache.stack_head_results(incl_remainder=True, **how)
        case "neuron":
            return cache.stack_neuron_results(-1, incl_remainder=True, **how)
        case "all":
            return cache.get_full_resid_decomposition(**how)
    between = not (cache.cfg.attn_only or cache.cfg.parallel_attn_mlp)
    stack, labels = cache.accumulated_resid(incl_mid=between, pos_slice=pos, return_labels=True)
    return einsum("c...d,...do->c...o", cache.apply_ln_to_stack(stack, pos_slice=pos), direction), labels

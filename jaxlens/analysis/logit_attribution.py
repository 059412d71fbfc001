"""Direct logit attribution: the contribution of each component to the logit of a token, or to a logit difference.

Axes: c component, n head, d d_model, l layer; "..." is batch and position, whichever there are.

With the final norm's scale held fixed, a logit is linear in the residual stream, and the residual stream is a sum. So a
component contributes the dot product of its output with one direction (Elhage et al. 2021,
transformer-circuits.pub/2021/framework; Wang et al. 2022, arXiv 2211.00593). Its effect through later components is not
included.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import full_precision
from jaxlens.errors import require
from jaxlens.hooks.slice import Slice
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.model.cache.any_mesh import cache_on_any_mesh
from jaxlens.model.cache.linear_norm import logit_constant, logit_direction
from jaxlens.model.cache.writers import read

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
"""The activations that each unit needs, besides the position embedding and the final norm's scale."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class DirectLogitAttribution:
    """The contribution of every component to a logit or a logit difference, in logits before a soft cap.

    `axes` names the axes of `values` after the first: "batch", "pos". The last row, "constant", comes from the biases
    of the unembedding and of the final norm. The rows sum to the logits, except for the unit "layer", where each row is
    the logit of the residual stream up to that layer."""

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
        """The rows of heads, with an axis for the layer and an axis for the head.

        Raises:
            ValueError: This attribution has another unit.
        """
        layer_head = [label[1:].split("H") for label in self.labels if label.startswith("L") and "H" in label]
        if not layer_head:
            raise ValueError(f'heads() needs an attribution with unit="head" or unit="all"; got unit="{self.unit}"')
        n_layers = int(layer_head[-1][0]) + 1
        return self.values[: len(layer_head)].reshape(n_layers, -1, *self.values.shape[1:])

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k components with the largest contribution, each with its mean over batch and position."""
        means = self._means()
        return [(self.labels[row], float(means[row])) for row in np.argsort(-means, kind="stable")[:k]]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with one row per value: the component, the index along each of `axes`, and the "value"."""
        pandas = require("pandas", "a DataFrame")
        indices = np.indices(self.values.shape).reshape(self.values.ndim, -1)
        columns = {"component": np.asarray(self.labels, object)[indices[0]]}
        columns |= dict(zip(self.axes, indices[1:], strict=True))
        return pandas.DataFrame(columns | {"value": np.asarray(self.values).ravel()})

    def _means(self) -> Float[np.ndarray, " c"]:
        return np.asarray(self.values, np.float32).reshape(len(self.labels), -1).mean(1)

    def __repr__(self, n_shown: int = 10) -> str:
        """The components of largest absolute contribution."""
        means = self._means()
        shown = np.argsort(-np.abs(means), kind="stable")[:n_shown]
        over = f", mean over {' and '.join(self.axes)} {self.values.shape[1:]}" if self.axes else ""
        lines = [f"DirectLogitAttribution(by {self.unit}: {float(jnp.mean(self.total)):+.3f} logits{over})"]
        lines += [f"  {means[row]:+8.3f}  {self.labels[row]}" for row in shown]
        return "\n".join(lines + [f"  and {len(means) - len(shown)} more"] * (len(means) > len(shown)))


def direct_logit_attribution(
    model: Any, input: Any = None, answer_tokens: Any = None, incorrect_tokens: Any = None, unit: Unit = "component",
    pos: Any = -1, cache: ActivationCache | None = None, **run_options: Any,
) -> DirectLogitAttribution:  # fmt: skip
    """The contribution of each component to the logits of `answer_tokens`, minus those of `incorrect_tokens` if given.

    The weights may be raw or processed. The rows sum to the logits before a soft cap.

    Args:
        model: A HookedTransformer.
        input: Prompts or tokens to run the model on, if no cache is given. Prompts are padded on the left, so that
            position -1 is the last token of each.
        answer_tokens: A string or a token id, a list with one per prompt, or an array [batch], [pos] or [batch pos].
        incorrect_tokens: The tokens to compare with, of the same shape as `answer_tokens`.
        unit: The kind of component. "component": embeddings, and the attention and MLP of each layer. "head" and
            "neuron": each head or neuron, and the sum of the rest as "remainder". "all": heads, neurons, embeddings and
            biases. "layer": the accumulated residual stream before each layer.
        pos: One position, several, or None for all.
        cache: The cache of a run. The model is then not run.
        run_options: Options of the run: attention_mask, prepend_bos, padding_side.

    Raises:
        ValueError: `answer_tokens` or the input is missing, the unit is unknown, or the tokens do not fit the prompts.
        ActivationNotFound: The cache lacks an activation. The message names it.

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
        raise ValueError(f"unit is {unit!r}; expected one of {', '.join(map(repr, get_args(Unit)))}")
    if answer_tokens is None:
        raise ValueError("answer_tokens is missing; give the tokens whose logits are attributed")
    if cache is None:
        cache, pos = _run(model, input, unit, pos, run_options), None
    elif run_options:
        raise ValueError(f"{', '.join(run_options)} cannot be given with a cache, because the model is not run")
    return _attribute(cache.with_model(model), answer_tokens, incorrect_tokens, unit, pos)


def _run(model: Any, input: Any, unit: Unit, pos: Any, run_options: dict[str, Any]) -> ActivationCache:
    """The cache of a run, with the activations that the unit needs at the selected positions."""
    if input is None:
        raise ValueError("input is missing; give an input to run the model on, or cache= with the cache of a run")
    if isinstance(input, list | tuple) and input and isinstance(input[0], str):
        run_options = {"padding_side": "left"} | run_options
    reads = (*READS[unit], "hook_pos_embed", "ln_final.hook_scale")
    return model.run_with_cache(
        input, names_filter=lambda name: name.endswith(reads), pos_slice=Slice(pos), **run_options
    )[1]  # fmt: skip


@cache_on_any_mesh
@full_precision()
def _attribute(cache: ActivationCache, answers: Any, incorrect: Any, unit: Unit, pos: Any) -> DirectLogitAttribution:
    last = f"blocks.{cache.cfg.n_layers - 1}.hook_resid_post"
    shape = read(cache, ("ln_final.hook_scale", "hook_embed", last), Slice(pos)).shape[:-1]
    target = cache.model, answers, incorrect, shape, cache.has_batch_dim
    values, labels = _by_unit(cache, unit, pos, logit_direction(*target)[..., None])
    values = jnp.concatenate([values[..., 0], jnp.broadcast_to(logit_constant(*target), (1, *shape))])
    axes = ("batch",) * cache.has_batch_dim + ("pos",) * (len(shape) > cache.has_batch_dim)
    return DirectLogitAttribution(values, (*labels, "constant"), unit, axes)


def _by_unit(cache: ActivationCache, unit: Unit, pos: Any, direction: Float[Array, "... d 1"]):
    """The dot product of each component with a direction at the final norm's output, and the labels of components.

    The direction is pulled back through the weights, so no vector of length d_model is computed per component.
    """
    options = {"apply_ln": True, "pos_slice": pos, "return_labels": True, "project_output_onto": direction}
    match unit:
        case "component":
            return cache.decompose_resid(**options)
        case "head":
            return cache.stack_head_results(incl_remainder=True, **options)
        case "neuron":
            return cache.stack_neuron_results(-1, incl_remainder=True, **options)
        case "all":
            return cache.get_full_resid_decomposition(**options)
    sequential = not (cache.cfg.attn_only or cache.cfg.parallel_attn_mlp)
    stack, labels = cache.accumulated_resid(incl_mid=sequential, pos_slice=pos, return_labels=True)
    return jnp.einsum("c...d,...do->c...o", cache.apply_ln_to_stack(stack, pos_slice=pos), direction), labels

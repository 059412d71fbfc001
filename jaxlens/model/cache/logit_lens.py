"""The logit lens: what the model would predict if it stopped after each layer (nostalgebraist 2020).

Axes: c entry of the stack (a layer), d d_model, v vocabulary, k selected token; "..." is batch and position, if any.

Every entry of the accumulated residual stream goes through the model's final norm and unembedding, a few at a time. No
more logits exist at once than those of a single forward pass, or of ROWS_AT_ONCE positions if that is more.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens._jax import full_precision, wide
from jaxlens.hooks.slice import Slice
from jaxlens.hooks.tap import Tap
from jaxlens.model.cache.any_mesh import cache_on_any_mesh
from jaxlens.model.cache.linear_norm import as_tokens
from jaxlens.model.cache.writers import read
from jaxlens.nn.module import arrays
from jaxlens.nn.norm import Norm
from jaxlens.nn.transformer import Modules

ROWS_AT_ONCE = 64  # the rows that share a pass over W_U
Kind = Literal["logits", "log_probs", "probs"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class LogitLensResult:
    """The next-token prediction of every entry of the accumulated residual stream.

    `values` are the logits (or log-probabilities, or probabilities) of `tokens`, or of the whole vocabulary if `tokens`
    is None. `entropy` is in nats. `ranks` are those of the targets (0 is the likeliest token), or None.
    """

    labels: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    values: Float[Array, "c ... k"]
    entropy: Float[Array, "c ..."]
    tokens: Int[Array, "*c k"] | None = None
    ranks: Int[Array, "c ... k"] | None = None

    def top_tokens(self, tokenizer: Any) -> dict[str, Any]:
        """The selected tokens as strings, in nested lists for each label."""
        if self.tokens is None:
            raise ValueError("the lens kept the whole vocabulary; select tokens with top_k=, targets= or vocab=")
        kept = np.broadcast_to(self.tokens, self.values.shape)

        def strings(tokens):
            return [strings(row) for row in tokens] if tokens.ndim else tokenizer.to_single_str_token(int(tokens))

        return {label: strings(row) for label, row in zip(self.labels, kept, strict=True)}

    def __repr__(self) -> str:
        of = "the whole vocabulary" if self.tokens is None else f"{self.values.shape[-1]} tokens"
        return f"LogitLensResult({self.labels[0]} to {self.labels[-1]}, {of}: {self.values.shape})"


@cache_on_any_mesh
@full_precision()
def logit_lens(
    cache: Any, layers: Sequence[int] | None = None, incl_mid: bool = False, positions: Any = -1,
    batch_slice: Any = None, lens: Callable[[jax.Array, int], jax.Array] | None = None, apply_ln: bool = True,
    vocab: Any = None, targets: Any = None, return_type: Kind = "logits", top_k: int | None = None,
) -> LogitLensResult:  # fmt: skip
    """The logit lens: `accumulated_resid` through the final norm and W_U, as if the model stopped after each layer.

    The last entry gives the model's own logits. `layers` selects entries by index. Tokens are selected by `vocab` (the
    same for all rows), `targets` (with their ranks; a list is shared by all rows, an array has a token per row) or
    `top_k` (the likeliest). `lens(entry, index)` changes an entry before the norm, as a tuned lens does (arXiv
    2303.08112).

    Raises:
        ValueError: `layers`, `positions` or `batch_slice` selects nothing, several arguments select tokens, or
            `return_type` or the shape of the targets is invalid.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> logits, cache = model.run_with_cache([[1, 2, 3]])
        >>> cache.logit_lens(top_k=4)
        LogitLensResult(0_pre to final_post, 4 tokens: (3, 1, 4))
        >>> bool(jnp.allclose(cache.logit_lens(positions=None).values[-1], logits, atol=1e-5))
        True
    """
    _check(return_type, vocab=vocab, targets=targets, top_k=top_k)
    model = cache.require_model()
    entry = read(cache, f"blocks.{cache.cfg.n_layers - 1}.hook_resid_post", Slice(positions))
    if not Slice(batch_slice).apply(entry).size or (layers is not None and not len(layers)):
        selection = f"layers={layers!r}, positions={positions!r} and batch_slice={batch_slice!r}"
        raise ValueError(f"{selection} select nothing; expected at least one layer, position and prompt")
    stack, labels = cache.accumulated_resid(incl_mid=incl_mid, pos_slice=positions, return_labels=True)
    if layers is not None:
        stack, labels = stack[np.asarray(layers)], [labels[entry] for entry in layers]
    stack = Slice(batch_slice).apply(stack, 1) if batch_slice is not None else stack
    if lens is not None:
        entries = range(len(labels)) if layers is None else layers
        stack = jnp.stack([lens(entry, index) for entry, index in zip(stack, entries, strict=True)])
    modules = arrays(model.modules)
    if apply_ln:
        stack = renormalise(modules.ln_final, stack)
    selected = _shared(model, vocab) if vocab is not None else _targets(model, targets, stack.shape[1:-1])
    results = read_vocabulary(modules, stack, selected, targets is not None, return_type, top_k)
    tokens = selected if selected is None or selected.ndim == 1 else selected[None]
    return LogitLensResult(tuple(labels), **({"tokens": tokens} | results))


def _check(return_type: str, **selectors: Any) -> None:
    if return_type not in get_args(Kind):
        raise ValueError(f"return_type is {return_type!r}; expected one of {', '.join(map(repr, get_args(Kind)))}")
    if len(given := [name for name, value in selectors.items() if value is not None]) > 1:
        raise ValueError(f"{' and '.join(given)} each select tokens; give only one of them")


def _shared(model: Any, tokens: Any) -> Int[Array, " k"]:
    """A token or a list of tokens for all rows."""
    if not np.size(tokens):
        raise ValueError("the list of tokens is empty; give at least one token, or None for the whole vocabulary")
    return jnp.atleast_1d(as_tokens(model, tokens))


def _targets(model: Any, targets: Any, rows: tuple[int, ...]) -> Int[Array, "*rows k"] | None:
    """Targets as TransformerLens takes them: an array has a token per row; anything else is shared by all rows."""
    if targets is None or not isinstance(targets, jax.Array | np.ndarray):
        return None if targets is None else _shared(model, targets)
    if targets.shape != rows:
        raise ValueError(f"targets have shape {targets.shape}; expected {rows}, one per row, or a list for all rows")
    return as_tokens(model, targets)[..., None]


@jax.jit
def renormalise(norm: Norm | None, stack: Float[Array, "*c d"]) -> Float[Array, "*c d"]:
    """Normalizes each row separately, with the norm's weight and bias."""
    if norm is None:
        return stack
    return norm(stack.reshape(1, -1, stack.shape[-1]), Tap()).reshape(stack.shape)


@functools.partial(jax.jit, static_argnames=("ranked", "kind", "top_k"))
def read_vocabulary(
    modules: Modules, stack: Float[Array, "c ... d"], selected: Int[Array, "*rows k"] | None, ranked: bool, kind: Kind,
    top_k: int | None,
) -> dict[str, jax.Array]:  # fmt: skip
    """Unembeds normalized entries: their values and entropy, with `top_k` also tokens, and if `ranked` also ranks."""

    def of(x):
        logits = modules.unembed(x.reshape(1, -1, x.shape[-1]), modules.embed.W_E, Tap())
        logits = wide(logits.reshape(*x.shape[:-1], -1))
        log_probs = jax.nn.log_softmax(logits)
        probs = jnp.exp(log_probs)
        values = {"logits": logits, "log_probs": log_probs, "probs": probs}[kind]
        results = {"values": values, "entropy": -jnp.sum(probs * log_probs, axis=-1)}
        if top_k is not None:
            results["values"], results["tokens"] = jax.lax.top_k(values, top_k)
        if selected is not None:
            each = jnp.broadcast_to(selected, (*x.shape[:-1], selected.shape[-1]))
            each = jnp.where(each < 0, logits.shape[-1], each)  # outside the vocabulary (if traced): NaN
            results["values"] = jnp.take_along_axis(values, each, axis=-1)
        if ranked:
            of_target = jnp.take_along_axis(logits, each, axis=-1)
            results["ranks"] = jnp.sum(logits[..., None, :] > of_target[..., None], axis=-1)
        return results

    n_rows = math.prod(stack.shape[1:-1])
    return jax.lax.map(of, stack, batch_size=max(1, ROWS_AT_ONCE // n_rows))

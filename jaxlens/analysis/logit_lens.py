"""The logit lens: what the model would say if it stopped after each layer (nostalgebraist 2020).

Axes: c entry of the stack (a layer), d d_model, v vocabulary, k the few tokens that are kept; "..." is batch and
position, whichever there are.

Every entry of the accumulated residual stream goes through the model's own final norm and unembedding, a few at a time,
so that no more logits exist at once than those of one forward, or of ROWS_AT_ONCE positions if that is more.
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

from jaxlens.analysis.final_norm import as_tokens
from jaxlens.hooks import Tap
from jaxlens.nn.norm import Norm
from jaxlens.parameters import Parts
from jaxlens.slices import Slice

ROWS_AT_ONCE = 64  # enough to read the unembedding once for many rows
Kind = Literal["logits", "log_probs", "probs"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class LogitLensResult:
    """What every entry of the accumulated residual stream says of the next token.

    `values` are the logits (or log-probabilities, or probabilities) of `tokens`, or of the whole vocabulary if that is
    None; `entropy` is in nats. `ranks` (0: the likeliest) is there if targets were asked for.
    """

    labels: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    values: Float[Array, "c ... k"]
    entropy: Float[Array, "c ..."]
    tokens: Int[Array, "*c k"] | None = None
    ranks: Int[Array, "c ... k"] | None = None

    def top_tokens(self, tokenizer: Any) -> dict[str, Any]:
        """The kept tokens as strings, nested lists for each label."""
        if self.tokens is None:
            raise ValueError("the lens kept the whole vocabulary; to have some tokens give it top_k, targets or vocab")
        kept = np.broadcast_to(self.tokens, self.values.shape)

        def strings(tokens):
            return [strings(row) for row in tokens] if tokens.ndim else tokenizer.to_single_str_token(int(tokens))

        return {label: strings(row) for label, row in zip(self.labels, kept, strict=True)}

    def __repr__(self) -> str:
        of = "the whole vocabulary" if self.tokens is None else f"{self.values.shape[-1]} tokens"
        return f"LogitLensResult({self.labels[0]} to {self.labels[-1]}, {of}: {self.values.shape})"


def logit_lens(
    cache: Any, layers: Sequence[int] | None = None, incl_mid: bool = False, positions: Any = -1,
    batch_slice: Any = None, lens: Callable[[jax.Array, int], jax.Array] | None = None, apply_ln: bool = True,
    vocab: Any = None, targets: Any = None, return_type: Kind = "logits", top_k: int | None = None,
) -> LogitLensResult:  # fmt: skip
    """See `ActivationCache.logit_lens`."""
    _check(return_type, vocab=vocab, targets=targets, top_k=top_k)
    model = cache.needs_model()
    stack, labels = cache.accumulated_resid(incl_mid=incl_mid, pos_slice=positions, return_labels=True)
    if layers is not None:
        stack, labels = stack[np.asarray(layers)], [labels[entry] for entry in layers]
    stack = Slice(batch_slice).apply(stack, 1) if batch_slice is not None else stack
    if lens is not None:
        entries = range(len(labels)) if layers is None else layers
        stack = jnp.stack([lens(entry, index) for entry, index in zip(stack, entries, strict=True)])
    if apply_ln:
        stack = renormalise(model.parts.ln_final, stack)
    few = _shared(model, vocab) if vocab is not None else _targets(model, targets, stack.shape[1:-1])
    found = read_vocabulary(model.parts, stack, few, targets is not None, return_type, top_k)
    kept = few if few is None or few.ndim == 1 else few[None]
    return LogitLensResult(tuple(labels), **({"tokens": kept} | found))


def _check(return_type: str, **selectors: Any) -> None:
    if return_type not in get_args(Kind):
        raise ValueError(f"return_type is {return_type!r}; wanted one of {', '.join(map(repr, get_args(Kind)))}")
    if len(given := [name for name, value in selectors.items() if value is not None]) > 1:
        raise ValueError(f"{' and '.join(given)} each choose the tokens to keep; give one of them")


def _shared(model: Any, tokens: Any) -> Int[Array, " k"]:
    """Tokens that are read in every row: one, or a list."""
    return jnp.atleast_1d(as_tokens(model, tokens))


def _targets(model: Any, targets: Any, rows: tuple[int, ...]) -> Int[Array, "*rows k"] | None:
    """Targets as TransformerLens takes them: an array has one for each row, anything else is shared by all rows."""
    if targets is None or not isinstance(targets, jax.Array | np.ndarray):
        return None if targets is None else _shared(model, targets)
    if targets.shape != rows:
        raise ValueError(f"targets have shape {targets.shape}; wanted one for each row, {rows}, or a list for all rows")
    return as_tokens(model, targets)[..., None]


@jax.jit
def renormalise(norm: Norm | None, stack: Float[Array, "*c d"]) -> Float[Array, "*c d"]:
    """A norm, weight and bias included, of every row by itself."""
    if norm is None:
        return stack
    return norm(stack.reshape(1, -1, stack.shape[-1]), Tap(())).reshape(stack.shape)


@functools.partial(jax.jit, static_argnames=("ranked", "kind", "top_k"))
def read_vocabulary(
    parts: Parts, stack: Float[Array, "c ... d"], few: Int[Array, "*rows k"] | None, ranked: bool, kind: Kind,
    top_k: int | None,
) -> dict[str, jax.Array]:  # fmt: skip
    """Normalised entries through the unembedding: values, entropy, and whichever of tokens and ranks were asked for."""

    def of(x):
        with jax.default_matmul_precision("highest"):
            logits = parts.unembed(x.reshape(1, -1, x.shape[-1]), parts.embed.W_E, Tap(()))
        logits = logits.reshape(*x.shape[:-1], -1).astype(jnp.promote_types(x.dtype, jnp.float32))
        log_probs = jax.nn.log_softmax(logits)
        probs = jnp.exp(log_probs)
        values = {"logits": logits, "log_probs": log_probs, "probs": probs}[kind]
        found = {"values": values, "entropy": -jnp.sum(probs * log_probs, axis=-1)}
        if top_k is not None:
            found["values"], found["tokens"] = jax.lax.top_k(values, top_k)
        if few is not None:
            each = jnp.broadcast_to(few, (*x.shape[:-1], few.shape[-1]))
            found["values"] = jnp.take_along_axis(values, each, axis=-1)
        if ranked:
            of_target = jnp.take_along_axis(logits, each, axis=-1)
            found["ranks"] = jnp.sum(logits[..., None, :] > of_target[..., None], axis=-1)
        return found

    n_rows = math.prod(stack.shape[1:-1])
    return jax.lax.map(of, stack, batch_size=max(1, ROWS_AT_ONCE // n_rows))

"""The prompt of a generation, checked and padded on the left, so that new tokens follow the last one of every row.

Axes: b batch, p position, d d_model.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.model.request import ModelInput, check_side
from jaxlens.nn.module import arrays

Kind = Literal["str", "list", "tokens", "embeds"]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as it was given, and as the model reads it."""

    kind: Kind
    given: Any
    model_input: ModelInput

    def repeated(self, n: int) -> "Prompt":
        """Each row n times."""
        if n == 1:
            return self
        given = None if self.given is None else np.repeat(np.asarray(self.given), n, axis=0)
        rows = jax.tree.map(lambda array: np.repeat(np.asarray(array), n, axis=0), self.model_input)
        return Prompt("list" if self.kind == "str" else self.kind, given, rows)


def read_prompt(model: Any, input: Any, prepend_bos: bool | None, padding_side: str | None, mask: Any) -> Prompt:
    """The prompt of text, tokens [b p] or embeddings [b p d]."""
    check_side(padding_side)
    if is_text(input):
        read = model.read_input(input, prepend_bos, "left", mask)
        return Prompt("str" if isinstance(input, str) else "list", read.tokens, left_padded(read))
    if is_embeddings(input):
        return Prompt("embeds", jnp.asarray(input), left_padded(_read_embeddings(model, input, mask)))
    read = model.read_input(input, prepend_bos, padding_side, mask)
    if mask is None and model.tokenizer is not None and len(read.tokens) > 1:
        sides = ("left", "right") if padding_side is None else (padding_side,)
        masks = [np.asarray(model.tokenizer.attention_mask(read.tokens, prepend_bos, side)) for side in sides]
        read = dataclasses.replace(read, mask=np.all(masks, axis=0))
    return Prompt("tokens", read.tokens, left_padded(read))


def is_text(input: Any) -> bool:
    """Whether a prompt is a string or a list of strings."""
    return isinstance(input, str) or (isinstance(input, list | tuple) and bool(input) and isinstance(input[0], str))


def is_embeddings(input: Any) -> bool:
    """Whether a prompt is an array of floats."""
    return hasattr(input, "dtype") and jnp.issubdtype(input.dtype, jnp.floating)


def left_padded(read: ModelInput) -> ModelInput:
    """The input with the padding of each row moved to its beginning."""
    mask = np.asarray(read.mask)
    if not mask.any(axis=-1).all():
        raise ValueError(f"row {int(np.flatnonzero(~mask.any(axis=-1))[0])} of the prompt has no token, only padding")
    if (mask[:, 1:] >= mask[:, :-1]).all():
        return dataclasses.replace(read, mask=mask, loss_mask=mask)
    order = np.argsort(mask, axis=-1, kind="stable")
    mask = np.take_along_axis(mask, order, axis=-1)
    tokens = None if read.tokens is None else np.take_along_axis(np.asarray(read.tokens), order, axis=-1)
    residual = None if read.residual is None else jnp.take_along_axis(read.residual, order[..., None], axis=1)
    return ModelInput(tokens, residual, mask, mask)


def _read_embeddings(model: Any, embeddings: Float[Array, "b p d"], mask: Any) -> ModelInput:
    """Embeddings as a residual stream before the first layer: with position embeddings, if the model adds them."""
    read = model.read_input(jnp.asarray(embeddings, model.cfg.dtype), attention_mask=mask, start_at_layer=0)
    if model.cfg.positional_embedding_type not in ("standard", "sinusoidal"):
        return read
    info = model.modules.sequence_info(read.mask)
    positions = arrays(model.modules.pos_embed)(info.positions, read.mask)
    return dataclasses.replace(read, residual=read.residual + positions)


def embedded(model: Any, tokens: Int[Array, "b p"]) -> Float[Array, "b p d"]:
    """The embeddings of tokens, as at `hook_embed`."""
    return model.embed(jnp.asarray(tokens))

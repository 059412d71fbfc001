"""What a run is given: text, tokens or a residual stream, checked and made into arrays.

Axes: b batch, p position, d d_model.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlens.config import Config
from jaxlens.text import TextOnModel
from jaxlens.tracing import is_traced


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Given:
    """What a run starts from: tokens or a residual stream, and which columns are real (`mask` is None if all are)."""

    tokens: Int[Array, "b p"] | None
    residual: Float[Array, "b p d"] | None
    real: Bool[Array, "b p"]
    mask: Bool[Array, "b p"] | None


class ReadsInput(TextOnModel):
    """Mixin: the input of a call as arrays, or an error that says what is wrong with it."""

    cfg: Config

    def _read_input(
        self, input: Any, prepend_bos=None, padding_side=None, attention_mask=None, tokens=None, start_at_layer=None
    ) -> Given:
        """The input of a call, whose further arguments are named as there."""
        if padding_side not in ("left", "right", None):
            raise ValueError(f'padding_side is {padding_side!r}; wanted "left", "right" or None')
        if start_at_layer is None and tokens is not None:
            raise ValueError("tokens= belongs beside a residual stream, with start_at_layer; the input has tokens")
        if start_at_layer is not None:
            return self._read_residual(input, attention_mask, tokens)
        if isinstance(input, str) or (isinstance(input, list | tuple) and input and isinstance(input[0], str)):
            tokens, mask = self._tokenize(input, prepend_bos, padding_side)
        else:
            tokens, mask = self._check_tokens(input), None
            if attention_mask is None and self.tokenizer and (padding_side or self.tokenizer.padding_side) == "left":
                mask = self.tokenizer.attention_mask(tokens, self._bos(prepend_bos), "left")
        mask = mask if attention_mask is None else attention_mask
        return Given(tokens, None, *_masks(mask, tokens.shape))

    def _read_residual(self, residual, attention_mask, tokens) -> Given:
        residual = jnp.asarray(residual)
        if residual.ndim != 3 or residual.shape[-1] != self.cfg.d_model:
            raise ValueError(
                "with start_at_layer the input is a residual stream [batch, pos, d_model = "
                f"{self.cfg.d_model}]; got shape {residual.shape}"
            )
        if residual.dtype != jnp.dtype(self.cfg.dtype):
            raise TypeError(f"the residual stream is {residual.dtype}; the model's dtype is {self.cfg.dtype}")
        self._check_length(residual.shape)
        tokens = None if tokens is None else self._check_tokens(tokens)
        return Given(tokens, residual, *_masks(attention_mask, residual.shape[:2]))

    def _check_tokens(self, tokens) -> Int[Array, "b p"]:
        if isinstance(tokens, float | bytes | dict | type(None)):
            got = type(tokens).__name__
            raise TypeError(f"the input is a string, a list of strings or tokens [batch, pos]; got {got}")
        try:
            tokens = tokens if isinstance(tokens, jax.Array) else np.asarray(tokens)
        except ValueError as error:
            raise ValueError("tokens must be rectangular, [batch, pos]; pad rows of different lengths") from error
        if tokens.size == 0:
            raise ValueError(f"the input is empty (shape {tokens.shape}); wanted at least one token")
        self._check_vocabulary(tokens, self.cfg.d_vocab)
        if tokens.ndim not in (1, 2):
            raise ValueError(f"tokens must be [batch, pos] or [pos]; got shape {tokens.shape}")
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        self._check_length(tokens.shape)
        return jnp.asarray(tokens, jnp.int32)

    def _check_vocabulary(self, tokens, size: int) -> None:
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"tokens must be whole numbers; got dtype {tokens.dtype}")
        if not is_traced(tokens):
            values = np.asarray(tokens)
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= size:
                odd = low if low < 0 else high
                raise ValueError(f"token {odd} is out of the vocabulary; tokens are 0 to {size - 1}")

    def _check_length(self, shape) -> None:
        if shape[1] > self.cfg.n_ctx:
            raise ValueError(
                f"the input has {shape[1]} positions, more than the model's n_ctx = {self.cfg.n_ctx}; shorten it, or "
                "load the model with a larger n_ctx if its positions allow it"
            )


def _masks(mask: Any, shape: tuple[int, int]) -> tuple[Bool[Array, "b p"], Bool[Array, "b p"] | None]:
    """Which columns are real, and the same as a mask or None if nobody asked for one."""
    if mask is None:
        return jnp.ones(shape, bool), None
    mask = jnp.asarray(mask)
    if mask.shape != shape:
        raise ValueError(f"attention_mask has shape {mask.shape}; wanted {shape}, one entry for every token")
    if not is_traced(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
        raise ValueError("attention_mask holds other numbers than 1 (a token) and 0 (padding)")
    return mask.astype(bool), mask.astype(bool)

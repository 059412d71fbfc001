"""Text on a model: TransformerLens's tokenisation methods, by way of its tokenizer."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxlens.config import Config
from jaxlens.parameters import Parts
from jaxlens.tokenizer import Tokenizer

Side = Literal["left", "right"]


class TextOnModel:
    """Mixin: text to tokens and back. Every method needs `model.tokenizer`."""

    cfg: Config
    tokenizer: Tokenizer | None

    def set_tokenizer(self, tokenizer: Any, default_padding_side: Side | None = None) -> None:
        """Gives the model a tokenizer: a `jaxlens.Tokenizer`, one of tokenizers or of transformers, or None.

        Raises:
            ValueError: its vocabulary is larger than the model's.
        """
        if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer(tokenizer, default_prepend_bos=self.cfg.default_prepend_bos)
        if tokenizer is not None and len(tokenizer) > self.cfg.d_vocab:
            raise ValueError(f"the tokenizer has {len(tokenizer)} tokens; the model's d_vocab is {self.cfg.d_vocab}")
        if tokenizer is not None and default_padding_side is not None:
            tokenizer.padding_side = default_padding_side
        self.tokenizer = tokenizer

    def _needs_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer; give tokens, or a tokenizer with model.set_tokenizer(...)")
        return self.tokenizer

    def _bos(self, prepend_bos: bool | None) -> bool | None:
        """By default BOS is put in front if both the model and its tokenizer do so by default."""
        return False if prepend_bos is None and not self.cfg.default_prepend_bos else prepend_bos

    def _tokenize(self, text, prepend_bos, padding_side) -> tuple[Int[Array, "b p"], Bool[Array, "b p"] | None]:
        """Text as tokens, with the mask of its padding if there can be any; nothing is cut off."""
        tokens = self.to_tokens(text, prepend_bos, padding_side, truncate=False)
        if not tokens.size:
            raise ValueError(f"the input is empty: {text!r} has no tokens, and no BOS is put in front of it")
        self._check_length(tokens.shape)
        if len(tokens) == 1:
            return tokens, None
        return tokens, self.tokenizer.attention_mask(tokens, self._bos(prepend_bos), padding_side)

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Array, "b p"]:
        """Text as tokens [batch, pos], padded to the longest; cut to n_ctx with a warning if `truncate`.

        They lie on JAX's default device, whatever `move_to_device` says.
        """
        tokenizer = self._needs_tokenizer()
        return tokenizer.to_tokens(input, self._bos(prepend_bos), padding_side, n_ctx=self.cfg.n_ctx, truncate=truncate)

    def to_string(self, tokens: Any) -> str | list[str]:
        """Tokens as text: a string for [pos], a list of strings for [batch, pos]."""
        return self._needs_tokenizer().to_string(tokens)

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: Side | None = None
    ) -> list[str] | list[list[str]]:
        """Text or tokens as a list of the strings of each token."""
        return self._needs_tokenizer().to_str_tokens(input, self._bos(prepend_bos), padding_side)

    def to_single_token(self, string: str) -> int:
        """The one token that a string is; an error if it is several."""
        return self._needs_tokenizer().to_single_token(string)

    def to_single_str_token(self, int_token: int) -> str:
        """The string of one token."""
        return self._needs_tokenizer().to_single_str_token(int_token)

    def get_token_position(
        self,
        single_token: str | int,
        input: Any,
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> int:
        """Where a token stands in a text or in tokens."""
        tokenizer = self._needs_tokenizer()
        return tokenizer.get_token_position(single_token, input, mode, self._bos(prepend_bos), padding_side)

    def tokens_to_residual_directions(self, tokens: Any) -> jax.Array:
        """The unembedding vectors of tokens: their shape and [d_model], or [d_model] alone for a single token."""
        tokens = jnp.asarray(self.to_single_token(tokens) if isinstance(tokens, str) else tokens)
        self._check_vocabulary(tokens, self.cfg.d_vocab_out)
        tokens = tokens.reshape(()) if tokens.size == 1 else tokens
        return _columns(self.parts, tokens, self.cfg.output_logits_scale)


@functools.partial(jax.jit, static_argnames=("factor",))
def _columns(parts: Parts, tokens, factor: float):
    """The columns of `model.W_U` for these tokens; in a tied model they are rows of the embedding."""
    W_U, W_proj = parts.unembed.W_U, parts.unembed.W_proj
    columns = parts.embed.W_E[tokens] if W_U is None else jnp.moveaxis(W_U[:, tokens], 0, -1)
    columns = columns if W_proj is None else jnp.einsum("...w,dw->...d", columns, W_proj, precision="highest")
    return columns if factor == 1 else columns * jnp.asarray(factor, columns.dtype)

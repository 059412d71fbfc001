"""Methods of HookedTransformer: text to tokens and back, and the unembedding directions of tokens."""

import copy
import functools
import reprlib
from collections.abc import Mapping
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxlens._jax import full_precision
from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.config import Config
from jaxlens.errors import require
from jaxlens.model.request import bos_choice, checked_ids, required_tokenizer
from jaxlens.nn.embed import check_has_head
from jaxlens.nn.module import arrays
from jaxlens.nn.transformer import Modules
from jaxlens.text.tokenizer import Tokenizer

Side = Literal["left", "right"]


def as_tokenizer(tokenizer: Any, cfg: Config) -> Tokenizer | None:
    """A copy of a `Tokenizer`, or a `Tokenizer` of one of tokenizers or transformers."""
    if tokenizer is None or isinstance(tokenizer, Tokenizer):
        return copy.copy(tokenizer)
    return Tokenizer(tokenizer, default_prepend_bos=cfg.default_prepend_bos)


def tokenizer_of_config(cfg: Config) -> Tokenizer | None:
    """The tokenizer named `cfg.tokenizer_name`, or None."""
    return None if cfg.tokenizer_name is None else Tokenizer.from_pretrained(cfg.tokenizer_name)


def with_vocabulary(cfg: Config, tokenizer: Tokenizer | None) -> Config:
    """The config, with the size of the tokenizer's vocabulary if `d_vocab` is -1.

    Raises:
        ValueError: `d_vocab` is -1, and there is no tokenizer.
    """
    if cfg.d_vocab != -1:
        return cfg
    if tokenizer is None:
        raise ValueError("d_vocab is missing, and there is no tokenizer to read it from; pass d_vocab= or a tokenizer")
    return cfg.replace(d_vocab=len(tokenizer))


class TextMethods:
    """Mixin of HookedTransformer: text to tokens and back. The methods need `model.tokenizer`."""

    cfg: Config
    modules: Modules
    tokenizer: Tokenizer | None

    def set_tokenizer(self, tokenizer: Any, default_padding_side: Side | None = None) -> None:
        """Sets the model's tokenizer: a `jaxlens.Tokenizer`, a tokenizer of tokenizers or transformers, or None.

        The model keeps a copy of a `Tokenizer`: settings of `model.tokenizer` do not change `tokenizer`.

        It may have more tokens than the model, such as a pad token that was added. Such tokens are allowed as padding.
        """
        tokenizer = as_tokenizer(tokenizer, self.cfg)
        if tokenizer is not None and default_padding_side is not None:
            tokenizer.padding_side = default_padding_side
        self.tokenizer = tokenizer

    def to_tokens(
        self, input: str | list[str], prepend_bos: bool | None = None, padding_side: Side | None = None,
        move_to_device: bool = True, truncate: bool = True,
    ) -> Int[Array, "b p"]:  # fmt: skip
        """The tokens of text, [batch, pos], padded to the longest row and on JAX's default device.

        With `truncate`, rows longer than n_ctx are cut, with a warning. `move_to_device` has no effect.
        """
        bos = bos_choice(self.cfg, prepend_bos)
        tokenizer = required_tokenizer(self.tokenizer)
        return tokenizer.to_tokens(input, bos, padding_side, n_ctx=self.cfg.n_ctx, truncate=truncate)

    def to_chat(self, messages: Any, add_generation_prompt: bool = True) -> Int[Array, "b p"]:
        """The tokens of a conversation, formatted with the tokenizer's own chat template: [1 p], for `model.generate`.

        `messages` are dicts with "role" and "content". A list of conversations gives [b p], padded on the left.
        `add_generation_prompt` ends the tokens with the beginning of an answer. BOS is there if the template writes it.

        In a batch, `generate(tokens, prepend_bos=False, padding_side="left")` is right for every tokenizer. Without
        these arguments, padding is told from text as in all tokens, by the pad token at both ends of a row.

        Raises:
            TypeError: `messages` is neither a conversation nor a list of conversations.
            ValueError: There is no chat template, a conversation is empty, or the template refuses it.
            ImportError: The package jinja2 is not installed.

        Example:
            >>> import jaxlens
            >>> model = jaxlens.HookedTransformer.from_pretrained("smollm2-135m-instruct")  # doctest: +SKIP
            >>> tokens = model.to_chat([{"role": "user", "content": "Hello"}])  # doctest: +SKIP
            >>> answer = model.generate(tokens, max_new_tokens=20, return_type="str")  # doctest: +SKIP
        """
        tokenizer = required_tokenizer(self.tokenizer)
        texts = [_chat_text(tokenizer, chat, add_generation_prompt) for chat in _conversations(messages)]
        return tokenizer.to_tokens(texts, prepend_bos=False, padding_side="left")

    def to_string(self, tokens: Any) -> str | list[str]:
        """The text of tokens: a string for [pos], a list of strings for [batch, pos]."""
        return required_tokenizer(self.tokenizer).to_string(tokens)

    @overload
    def to_str_tokens(self, input: str, *args: Any, **kwargs: Any) -> list[str]: ...
    @overload
    def to_str_tokens(self, input: list[str], *args: Any, **kwargs: Any) -> list[list[str]]: ...
    @overload
    def to_str_tokens(self, input: Any, *args: Any, **kwargs: Any) -> Any: ...
    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: Side | None = None
    ) -> list[str] | list[list[str]]:
        """The string of each token of a text, or of each given token."""
        return required_tokenizer(self.tokenizer).to_str_tokens(input, bos_choice(self.cfg, prepend_bos), padding_side)

    def to_single_token(self, string: str) -> int:
        """The id of a string that is a single token, or a ValueError if the string has several tokens."""
        return required_tokenizer(self.tokenizer).to_single_token(string)

    def to_single_str_token(self, int_token: int) -> str:
        """The string of one token."""
        return required_tokenizer(self.tokenizer).to_single_str_token(int_token)

    def get_token_position(
        self, single_token: str | int, input: Any, mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None, padding_side: Side | None = None,
    ) -> int:  # fmt: skip
        """The first or last position of a token in a text or in tokens."""
        bos = bos_choice(self.cfg, prepend_bos)
        return required_tokenizer(self.tokenizer).get_token_position(single_token, input, mode, bos, padding_side)

    @on_any_mesh
    @full_precision()
    def tokens_to_residual_directions(self, tokens: Any) -> jax.Array:
        """The unembedding vectors of tokens, [*tokens.shape d_model], or [d_model] for a single token."""
        check_has_head(self.cfg)
        tokens = checked_ids(self.to_single_token(tokens) if isinstance(tokens, str) else tokens, self.cfg.d_vocab_out)
        tokens = tokens.reshape(()) if tokens.size == 1 else tokens
        return _unembedding_columns(arrays(self.modules), tokens, self.cfg.output_logits_scale)


def _conversations(messages: Any) -> list[list[Mapping[str, Any]]]:
    """The conversations of an argument of `to_chat`, checked."""
    is_list = isinstance(messages, list | tuple)
    chats = messages if is_list and messages and isinstance(messages[0], list | tuple) else [messages]
    for chat in chats:
        if not isinstance(chat, list | tuple) or not all(map(_is_message, chat)):
            form = 'a list of messages, such as {"role": "user", "content": "Hello"}, or a list of such lists'
            raise TypeError(f"messages is {reprlib.repr(messages)}; expected {form}")
        if not chat:
            raise ValueError("a conversation is empty; give at least one message")
    return [list(chat) for chat in chats]


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("role"), str) and "content" in message


def _chat_text(tokenizer: Tokenizer, chat: list[Mapping[str, Any]], add_generation_prompt: bool) -> str:
    """A conversation as text."""
    if not tokenizer.chat_template:
        set_it = "set model.tokenizer.chat_template, or load an instruction-tuned model"
        raise ValueError(f"the tokenizer has no chat template; {set_it}")
    exceptions = require("jinja2", "to_chat").exceptions
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
    except exceptions.TemplateError as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from error


@functools.partial(jax.jit, static_argnames=("factor",))
def _unembedding_columns(modules: Modules, tokens, factor: float):
    """The columns of `model.W_U` for these tokens, NaN for a token outside the vocabulary (it may be traced)."""
    W_U, W_proj = modules.unembed.W_U, modules.unembed.W_proj
    chosen = modules.embed.W_E.at[tokens] if W_U is None else W_U.at[:, tokens]
    columns = chosen.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    columns = columns if W_U is None else jnp.moveaxis(columns, 0, -1)
    columns = columns if W_proj is None else jnp.einsum("...w,dw->...d", columns, W_proj)
    return columns if factor == 1 else columns * jnp.asarray(factor, columns.dtype)

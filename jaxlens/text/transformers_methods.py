"""The methods of `Tokenizer` that a tokenizer of transformers has too, with the same arguments."""

from collections.abc import Iterable
from typing import Any

from jaxlens.errors import require


class TransformersMethods:
    """Mixin of Tokenizer: encoding and decoding as in transformers, chat templates, and all other methods."""

    def encode(self, text: str, add_special_tokens: bool = False, **options: Any) -> Any:
        """The ids of `text`. With `add_special_tokens`, the backend may add special tokens.

        `options` are those of transformers, such as `return_tensors="np"` (an array [1 pos]) or `max_length=`.
        """
        if options:
            return self.as_transformers().encode(text, add_special_tokens=add_special_tokens, **options)
        ids = self.backend.encode(text, add_special_tokens=add_special_tokens)
        return ids.ids if self._fast else list(ids)

    def decode(self, ids: Any, skip_special_tokens: bool = False, **options: Any) -> str:
        """The exact text of an id or a sequence of ids, without cleanup of spaces.

        `options` are those of transformers, such as `clean_up_tokenization_spaces=True`.
        """
        ids = self._ids(ids, max_ndim=1).reshape(-1).tolist()
        if options:
            return self.as_transformers().decode(ids, skip_special_tokens=skip_special_tokens, **options)
        return self._text(ids, skip_special_tokens)

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """The text of each sequence. Sequences may differ in length."""
        return [self.decode(ids, skip_special_tokens, **options) for ids in sequences]

    def apply_chat_template(self, conversation: Any, tokenize: bool = True, **options: Any) -> Any:
        """Formats a conversation with the chat template, as a transformers tokenizer does with the same arguments.

        Raises:
            ValueError: There is no chat template.
            ImportError: The package jinja2 is not installed.
        """
        if not self.chat_template and "chat_template" not in options:
            raise ValueError("the tokenizer has no chat template; pass chat_template=...")
        require("jinja2", "apply_chat_template")
        return self.as_transformers().apply_chat_template(conversation, tokenize=tokenize, **options)

    def as_transformers(self) -> Any:
        """This tokenizer as a transformers tokenizer. The first call imports transformers."""
        if self._transformers is None:
            from transformers import PreTrainedTokenizerFast

            options = {f"{role}_token": token for role, (token, _) in self._special.items() if token is not None}
            self._transformers = PreTrainedTokenizerFast(tokenizer_object=self.backend, **options)
        if self._fast:
            for name in ("padding_side", "chat_template", "model_max_length", "name_or_path"):
                setattr(self._transformers, name, getattr(self, name))
        return self._transformers

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Calls `as_transformers()`, which adds special tokens by its own rule, unlike `to_tokens`."""
        return self.as_transformers()(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle look up such names before `backend` is set
            raise AttributeError(name)
        if name in ("add_tokens", "add_special_tokens"):
            raise AttributeError(f"Tokenizer has no {name}; add tokens to the backend, then wrap it again")
        return getattr(self.as_transformers(), name)

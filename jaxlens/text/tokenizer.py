"""Converts text to tokens and back, with the same treatment of BOS and padding for all tokenizers.

Text is encoded without special tokens. Then the beginning-of-sequence token (BOS) is prepended if requested, so that it
is never duplicated and never missing. The shorter sequences of a batch are padded on one side with the pad token. The
attention mask is 0 on the padding only.
"""

import functools
import hashlib
import json
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array, Int

from jaxlens.text.tokenizer_files import ROLES, find_folder, read_folder, read_json
from jaxlens.text.transformers_methods import TransformersMethods


def _special_token(role: str) -> tuple[property, property]:
    """Two properties: the text of a special token, which can be set to a token of the vocabulary, and its id."""

    def write(self: "Tokenizer", token: str | None) -> None:
        index = None if token is None else self._id(token)
        if token is not None and index is None:
            raise ValueError(f"{role}_token is {token!r}; expected one of the tokenizer's {len(self)} tokens")
        self._special = self._special | {role: (token, index)}  # a new dict, because copies share the old one
        self._transformers = None if self._fast else self.backend  # a cached copy would have the old token

    text = property(lambda self: self._special[role][0], write, doc=f"The {role.upper()} token's text, or None.")
    return text, property(lambda self: self._special[role][1], doc=f"The {role.upper()} token's id, or None.")


NO_MAX_LENGTH = int(1e30)
"""The `model_max_length` of a tokenizer that does not limit it, as in transformers."""


class Tokenizer(TransformersMethods):
    """A tokenizer of `tokenizers` or `transformers`, with TransformerLens's methods.

    `backend` is a `tokenizers.Tokenizer`, or an object with the methods of a transformers tokenizer, whose special
    tokens, `padding_side` and `chat_template` are the defaults. As in TransformerLens, the pad token defaults to EOS,
    or to BOS if there is no EOS token. `default_prepend_bos` and `padding_side` are the defaults of the methods. Other
    attributes, such as `convert_ids_to_tokens`, are those of `as_transformers()`. `model_max_length` is a note of the
    tokenizer's file; `to_tokens` cuts at the `n_ctx` of the model.

    Methods return tokens as int32 arrays. They accept integers, lists and arrays of token ids, and raise ValueError for
    an id outside the vocabulary.

    Example:
        >>> from tokenizers import models, pre_tokenizers
        >>> words = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "the": 1, "cat": 2, "?": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = Tokenizer(words, bos_token="<s>")
        >>> tokenizer.to_tokens(["the cat", "cat"]).tolist()
        [[0, 1, 2], [0, 2, 0]]
        >>> tokenizer.to_str_tokens("the cat", prepend_bos=False)
        ['the', 'cat']
    """

    bos_token, bos_token_id = _special_token("bos")
    eos_token, eos_token_id = _special_token("eos")
    pad_token, pad_token_id = _special_token("pad")
    unk_token, unk_token_id = _special_token("unk")

    def __init__(
        self, backend: Any, *, bos_token: str | None = None, eos_token: str | None = None,
        pad_token: str | None = None, unk_token: str | None = None, padding_side: str | None = None,
        default_prepend_bos: bool = True, chat_template: str | Mapping[str, str] | None = None,
        model_max_length: int | None = None,
    ):  # fmt: skip
        self._fast = isinstance(backend, tokenizers.Tokenizer)
        methods = ("encode", "decode", "get_vocab", "bos_token_id")
        if isinstance(backend, Tokenizer) or not (self._fast or all(hasattr(backend, name) for name in methods)):
            raise TypeError(f"backend is {backend!r}; expected a tokenizers.Tokenizer or a transformers tokenizer")
        if self._fast and (backend.padding or backend.truncation):
            # to_tokens pads and truncates. Change a copy, so that the caller's object keeps its settings.
            backend = tokenizers.Tokenizer.from_str(backend.to_str())
            backend.no_padding()
            backend.no_truncation()
        self.backend = backend
        self._size = max(backend.get_vocab().values(), default=-1) + 1
        self._special: dict[str, tuple[str | None, int | None]] = {}
        defaults = None if self._fast else backend  # a tokenizers.Tokenizer has none of these attributes
        for role, token in zip(ROLES, (bos_token, eos_token, pad_token, unk_token), strict=True):
            setattr(self, f"{role}_token", getattr(defaults, f"{role}_token", None) if token is None else token)
        if self.pad_token is None:
            self.pad_token = self.bos_token if self.eos_token is None else self.eos_token
        self.padding_side = self._side(padding_side or getattr(defaults, "padding_side", None) or "right")
        self.default_prepend_bos = default_prepend_bos
        self.chat_template = chat_template or getattr(defaults, "chat_template", None)
        length = getattr(defaults, "model_max_length", None) if model_max_length is None else model_max_length
        self.name_or_path: str = getattr(defaults, "name_or_path", "")
        self.model_max_length = NO_MAX_LENGTH if length is None else length

    @classmethod
    def from_folder(cls, path: str | Path, name: str | None = None) -> "Tokenizer":
        """Loads the tokenizer of a folder with Hugging Face files, or of a folder that `save` wrote.

        `name_or_path` is `name`, or else the path.

        Special tokens are read from `tokenizer_config.json` or `special_tokens_map.json`. Tokens missing there, as
        for GPT-2, are read by their ids from `config.json`. Without a `tokenizer.json`, transformers reads the other
        files.

        Raises:
            CheckpointError: The folder contains no tokenizer, or its tokenizer cannot be read.
        """
        tokenizer = cls(**read_folder(Path(path)))
        tokenizer.name_or_path = str(path) if name is None else name
        return tokenizer

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None, **hub: Any) -> "Tokenizer":
        """Loads the tokenizer of a folder or of a Hugging Face id. Downloads only the tokenizer's files.

        `hub` are arguments of `huggingface_hub.snapshot_download`: token, cache_dir, local_files_only.

        Raises:
            CheckpointError: There is no such folder or id, or its tokenizer cannot be read.
        """
        return cls.from_folder(find_folder(name, revision, **hub), str(name))

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `from_folder` and transformers both read.

        For a slow transformers tokenizer, which has no `tokenizer.json`, writes the files of transformers instead.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        backend = self.backend if self._fast else getattr(self.backend, "backend_tokenizer", None)
        if isinstance(backend, tokenizers.Tokenizer):
            backend.save(str(folder / "tokenizer.json"))
        else:
            self.backend.save_pretrained(folder)
            settings = read_json(folder / "tokenizer_config.json")
        settings |= {f"{role}_token": token for role, (token, _) in self._special.items()}
        settings |= {"padding_side": self.padding_side, "default_prepend_bos": self.default_prepend_bos}
        if isinstance(template := self.chat_template, Mapping):
            template = [{"name": name, "template": text} for name, text in template.items()]
        settings |= {"chat_template": template} if template else {}
        settings |= {"model_max_length": self.model_max_length} if self.model_max_length != NO_MAX_LENGTH else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), "utf-8")

    @property
    def settings(self) -> tuple:
        """The settings that a method may depend on, by value."""
        return len(self), self.padding_side, self.default_prepend_bos, tuple(self._special.items())

    def encodes_like(self, other: "Tokenizer") -> bool:
        """Whether both tokenizers have equal backends, so that with equal settings they give equal tokens."""
        if self.backend is other.backend or not (self._fast and other._fast):
            return self.backend is other.backend
        return self._backend_hash == other._backend_hash

    @functools.cached_property
    def _backend_hash(self) -> str:
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def __repr__(self) -> str:
        special = ", ".join(f"{role}={token!r}" for role, (token, _) in self._special.items())
        policy = f"padding_side={self.padding_side!r}, default_prepend_bos={self.default_prepend_bos}"
        return f"Tokenizer({self._size} tokens, {special}, {policy})"

    def __len__(self) -> int:
        return self._size

    vocab_size = property(__len__, doc="The largest id, including those of added tokens, plus one.")

    def get_vocab(self) -> dict[str, int]:
        """The id of each token. Keys are in the format of the tokenizer file: "Ġthe" for GPT-2 and "▁the" for Llama."""
        return self.backend.get_vocab()

    def _id(self, token: str) -> int | None:
        return self.backend.token_to_id(token) if self._fast else self.backend.get_vocab().get(token)

    @property
    def prepends_bos(self) -> bool:
        """Whether the backend prepends BOS by default. Encodes an empty text, because settings are unreliable."""
        return self.bos_token_id is not None and self.encode("", add_special_tokens=True)[:1] == [self.bos_token_id]

    def to_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None, n_ctx: int | None = None,
        truncate: bool = True,
    ) -> Int[Array, "batch pos"]:  # fmt: skip
        """The tokens of a list of strings, padded to equal lengths. A string is a batch of one.

        With `truncate`, inputs longer than `n_ctx` tokens, including BOS, are cut at the end, with a warning.

        Raises:
            ValueError: The list is empty, or a BOS or pad token is needed but not set.
            TypeError: `input` is neither a string nor a list of strings.
        """
        texts = [input] if isinstance(input, str) else input
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"input is {reprlib.repr(input)}; expected a string or a list of strings")
        if not texts:
            raise ValueError("input is an empty list; expected at least one string")
        side = self._side(padding_side)
        rows = self.rows(texts, prepend_bos)
        longest = max(map(len, rows))
        if truncate and n_ctx is not None and longest > n_ctx:
            warnings.warn(f"an input of {longest} tokens was truncated to n_ctx = {n_ctx}", UserWarning, stacklevel=2)
            rows, longest = [row[:n_ctx] for row in rows], n_ctx
        if any(len(row) < longest for row in rows) and self.pad_token_id is None:
            raise ValueError("inputs of different lengths need a pad token; set tokenizer.pad_token")
        padding = [[self.pad_token_id] * (longest - len(row)) for row in rows]
        rows = [pad + row if side == "left" else row + pad for row, pad in zip(rows, padding, strict=True)]
        return jnp.asarray(np.asarray(rows, np.int32).reshape(len(rows), longest))

    def rows(self, texts: Sequence[str], prepend_bos: bool | None = None) -> list[list[int]]:
        """The tokens of each text, without padding. A fast backend encodes them in parallel."""
        bos = [self.bos_token_id] if self._prepends(prepend_bos) else []
        if not self._fast or len(texts) == 1:
            return [bos + self.encode(text) for text in texts]
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [bos + encoding.ids for encoding in encodings]

    def to_string(self, tokens: Any) -> str | list[str]:
        """The exact text of an id or a sequence of ids, with special tokens; for a batch, a list of texts."""
        ids = self._ids(tokens)
        return [self._text(row) for row in ids.tolist()] if ids.ndim == 2 else self._text(ids.reshape(-1).tolist())

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> list[str] | list[list[str]]:
        """The text of each token: a list for a string or a sequence of ids, a list of lists for a batch of them.

        The text of a token is the result of `decode([id])` in transformers, such as " the" for GPT-2's "Ġthe". A
        tokenizer that drops the first space of a decoded text, such as Llama 2's, gives "the" for "▁the". A token that
        contains an incomplete character gives "�". A batch of strings is not padded.
        """
        self._side(padding_side)
        if isinstance(input, (list, tuple)) and any(isinstance(item, str) or np.ndim(item) for item in input):
            return [self.to_str_tokens(item, prepend_bos, padding_side) for item in input]
        batch = self.rows([input], prepend_bos) if isinstance(input, str) else np.atleast_2d(self._ids(input)).tolist()
        rows = [[self._text([index]) for index in row] for row in batch]
        return rows[0] if len(rows) == 1 else rows

    def to_single_token(self, string: str) -> int:
        """The id of a string that is a single token, without BOS. Raises ValueError if it has several tokens."""
        if len(ids := self.encode(string)) != 1:
            raise ValueError(f"{string!r} is {len(ids)} tokens, not one: {[self._text([index]) for index in ids]}")
        return ids[0]

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id."""
        if (ids := self._ids(int_token)).size != 1:
            raise ValueError(f"int_token has shape {ids.shape}; expected a single token; use to_str_tokens for several")
        return self._text(ids.reshape(-1).tolist())

    def get_token_position(
        self, single_token: str | int, input: Any, mode: str = "first", prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:  # fmt: skip
        """The position of the first or last occurrence of a token in a string or a sequence of ids.

        The token is an id, or a string that is a single token. A prepended BOS token has position 0.

        Raises:
            ValueError: The token does not occur, `mode` is neither "first" nor "last", or `input` is a batch.
        """
        if mode not in ("first", "last"):
            raise ValueError(f'mode is {mode!r}; expected "first" or "last"')
        ids = self._ids(self.to_tokens(input, prepend_bos, padding_side) if isinstance(input, str) else input)
        if ids.ndim == 2 and len(ids) != 1:
            raise ValueError(f"input is a batch of shape {ids.shape}; expected a string or a single sequence of tokens")
        token = self.to_single_token(single_token) if isinstance(single_token, str) else self._ids(single_token).item()
        positions = np.flatnonzero(ids.reshape(-1) == token)
        if not len(positions):
            raise ValueError(f"the token {self._text([token])!r} (id {token}) is not in {self.to_str_tokens(ids)}")
        return int(positions[0 if mode == "first" else -1])

    def attention_mask(
        self, tokens: Any, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> Int[Array, "batch pos"]:
        """1 for tokens and 0 for padding, which is the run of pad tokens at the padded end of each row.

        Pad tokens at other positions count as text, because the pad token is often also the EOS or BOS token. If it is
        the BOS token and BOS was prepended, the BOS of each row is not padding. In rows padded on the left, it is the
        last pad token before the text. A single sequence is a batch of one. Tokens may be traced.

        Raises:
            ValueError: `tokens` does not have one or two axes.
        """
        side = self._side(padding_side)
        try:
            xp, tokens = np, np.asarray(tokens)
        except jax.errors.TracerArrayConversionError:
            xp = jnp
        if tokens.ndim not in (1, 2):
            raise ValueError(f"tokens have shape {tokens.shape}; expected [batch, pos] or [pos]")
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        if self.pad_token_id is None:
            return jnp.ones(tokens.shape, jnp.int32)
        inwards = slice(None) if side == "left" else slice(None, None, -1)
        padding = xp.cumprod((tokens == self.pad_token_id)[:, inwards].astype(np.int32), axis=1)[:, inwards]
        if self.bos_token_id == self.pad_token_id and self._prepends(prepend_bos):
            bos = padding.sum(axis=1, keepdims=True) - 1 if side == "left" else 0
            padding = xp.where(np.arange(tokens.shape[1]) == bos, 0, padding)
        return jnp.asarray(1 - padding, jnp.int32)

    def _side(self, side: str | None) -> str:
        side = self.padding_side if side is None else side
        if side not in ("left", "right"):
            raise ValueError(f'padding_side is {side!r}; expected "left" or "right"')
        return side

    def _prepends(self, prepend_bos: bool | None) -> bool:
        if prepend_bos and self.bos_token_id is None:
            raise ValueError("prepend_bos=True needs a BOS token; set tokenizer.bos_token or pass prepend_bos=False")
        return bool(self.default_prepend_bos if prepend_bos is None else prepend_bos) and self.bos_token_id is not None

    def _text(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        exact = {} if self._fast else {"clean_up_tokenization_spaces": False}
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens, **exact)

    def _ids(self, tokens: Any, max_ndim: int = 2) -> np.ndarray:
        """Tokens as a numpy array. Checks their dtype, their range and the number of axes."""
        try:
            ids = np.asarray(tokens)
        except ValueError:
            raise ValueError("the sequences of tokens differ in length; pad them, or pass each separately") from None
        ids = ids if ids.size else ids.astype(np.int64)  # np.asarray([]) is a float array
        if not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"tokens have dtype {ids.dtype}; expected integers; use to_tokens for text")
        if ids.ndim > max_ndim:
            raise ValueError(f"tokens have shape {ids.shape}; expected at most {max_ndim} axes")
        if len(outside := ids[(ids < 0) | (ids >= self._size)]):
            raise ValueError(f"token {outside[0]} is outside the vocabulary; expected 0 to {self._size - 1}")
        return ids


def bos_token_id(cfg: Any, tokenizer: "Tokenizer | None", prepend_bos: bool | None = None) -> int | None:
    """The id of the BOS token that prompts start with, or None. The default is that of the config and the tokenizer."""
    bos = None if tokenizer is None else tokenizer.bos_token_id
    if prepend_bos and bos is None:
        raise ValueError("prepend_bos=True needs a tokenizer with a BOS token; set one or pass prepend_bos=False")
    by_default = cfg.default_prepend_bos and getattr(tokenizer, "default_prepend_bos", True)
    return bos if (by_default if prepend_bos is None else prepend_bos) else None

"""Text to tokens and back, with the one BOS policy and the one padding policy of the package.

BOS: text is encoded without what a tokenizer may add on its own, and then the beginning-of-sequence token is put in
front or not, as asked; so it is never doubled and never lost. Padding: the shorter sequences of a batch are filled up
with the pad token on one side, and a mask hides that run and nothing else.
"""

import json
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array, Int

from jaxlens.errors import CheckpointError

ROLES = ("bos", "eos", "pad", "unk")


def _special_token(role: str) -> tuple[property, property]:
    """The text of a special token, which can be set to another token of the vocabulary, and its id."""

    def write(self: "Tokenizer", token: str | None) -> None:
        index = None if token is None else self._id(token)
        if token is not None and index is None:
            raise ValueError(f"{role}_token {token!r} is none of the tokenizer's {len(self)} tokens; name one of them")
        self._special[role] = (token, index)
        self._transformers = None if self._fast else self.backend  # a copy made before holds the old token

    text = property(lambda self: self._special[role][0], write, doc=f"The {role.upper()} token's text, or None.")
    return text, property(lambda self: self._special[role][1], doc=f"The {role.upper()} token's id, or None.")


class Tokenizer:
    """A tokenizer with TransformerLens's methods around one from `tokenizers` or from `transformers`.

    `backend` is a `tokenizers.Tokenizer`, or any object with the methods of a transformers tokenizer; what is not given
    is taken from the latter. A missing pad token is the EOS token, or else the BOS token, as in TransformerLens, and a
    missing `padding_side` is "right". `default_prepend_bos` and `padding_side` stand in for a `None` given to a method.
    Other attributes (`convert_ids_to_tokens`, ...) are those of `as_transformers()`. Tokens come out as int32 arrays;
    going in they may be an int, lists, or arrays of integers: an id outside the vocabulary is a ValueError.

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
        self,
        backend: Any,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        unk_token: str | None = None,
        padding_side: str | None = None,
        default_prepend_bos: bool = True,
        chat_template: str | Mapping[str, str] | None = None,
    ):
        self._fast = isinstance(backend, tokenizers.Tokenizer)
        methods = ("encode", "decode", "get_vocab", "bos_token_id")
        if isinstance(backend, Tokenizer) or not (self._fast or all(hasattr(backend, name) for name in methods)):
            raise TypeError(f"the backend is {backend!r}; give a tokenizers.Tokenizer or a transformers tokenizer")
        if self._fast and (backend.padding or backend.truncation):
            # Padding and length are decided here; the caller's own object keeps its settings.
            backend = tokenizers.Tokenizer.from_str(backend.to_str())
            backend.no_padding()
            backend.no_truncation()
        self.backend = backend
        self._size = max(backend.get_vocab().values(), default=-1) + 1
        self._special: dict[str, tuple[str | None, int | None]] = {}
        theirs = None if self._fast else backend  # getattr(None, ...) finds nothing, as wanted
        for role, token in zip(ROLES, (bos_token, eos_token, pad_token, unk_token), strict=True):
            setattr(self, f"{role}_token", getattr(theirs, f"{role}_token", None) if token is None else token)
        if self.pad_token is None:
            self.pad_token = self.bos_token if self.eos_token is None else self.eos_token
        self.padding_side = self._side(padding_side or getattr(theirs, "padding_side", None) or "right")
        self.default_prepend_bos = default_prepend_bos
        self.chat_template = chat_template or getattr(theirs, "chat_template", None)

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer in a folder of Hugging Face files, or one that `save` wrote.

        Special tokens are named by `tokenizer_config.json` or `special_tokens_map.json`, else by their id in
        `config.json` (as for GPT-2). Without a `tokenizer.json`, transformers is asked to build a tokenizer from the
        other files. Raises `CheckpointError` when there is none that can be read.
        """
        folder = Path(path)
        settings = _read_json(folder / "tokenizer_config.json")
        own = {name: settings[name] for name in ("padding_side", "default_prepend_bos") if name in settings}
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; the folder that holds tokenizer.json was wanted")
        if not (folder / "tokenizer.json").is_file():
            return cls(_auto_tokenizer(folder), **own)
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the Rust library raises bare Exception
            raise CheckpointError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
        special = _special_tokens(folder, settings, backend)
        _add_tokens(folder, settings.get("added_tokens_decoder") or {}, backend)
        backend.add_special_tokens([token for token in special.values() if token is not None])
        return cls(backend, **special, **own, chat_template=_chat_template(folder, settings))

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `from_folder` and transformers both read.

        A slow transformers tokenizer has no `tokenizer.json`; it writes its own files instead.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        backend = self.backend if self._fast else getattr(self.backend, "backend_tokenizer", None)
        if isinstance(backend, tokenizers.Tokenizer):
            backend.save(str(folder / "tokenizer.json"))
        else:
            self.backend.save_pretrained(folder)
            settings = _read_json(folder / "tokenizer_config.json")
        settings |= {f"{role}_token": token for role, (token, _) in self._special.items()}
        settings |= {"padding_side": self.padding_side, "default_prepend_bos": self.default_prepend_bos}
        if isinstance(template := self.chat_template, Mapping):
            template = [{"name": name, "template": text} for name, text in template.items()]
        settings |= {"chat_template": template} if template else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), "utf-8")

    def __repr__(self) -> str:
        special = ", ".join(f"{role}={token!r}" for role, (token, _) in self._special.items())
        policy = f"padding_side={self.padding_side!r}, default_prepend_bos={self.default_prepend_bos}"
        return f"Tokenizer({self._size} tokens, {special}, {policy})"

    def __len__(self) -> int:
        return self._size

    vocab_size = property(__len__, doc="One more than the largest id, added tokens included.")

    def get_vocab(self) -> dict[str, int]:
        """Token text as the tokenizer stores it (for GPT-2 "Ġthe", for Llama "▁the") -> id."""
        return self.backend.get_vocab()

    def _id(self, token: str) -> int | None:
        return self.backend.token_to_id(token) if self._fast else self.backend.get_vocab().get(token)

    @property
    def prepends_bos(self) -> bool:
        """Whether the backend puts BOS in front on its own; found by trying, for no setting tells it reliably."""
        return self.bos_token_id is not None and self.encode("", add_special_tokens=True)[:1] == [self.bos_token_id]

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids of `text`; with `add_special_tokens`, those included that the backend adds on its own."""
        ids = self.backend.encode(text, add_special_tokens=add_special_tokens)
        return ids.ids if self._fast else list(ids)

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of one sequence of ids (or of one id), exactly: nothing is cleaned up."""
        return self._text(self._ids(ids, most=1).reshape(-1).tolist(), skip_special_tokens)

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False) -> list[str]:
        """`decode` of each sequence; they may differ in length."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def apply_chat_template(self, conversation: Any, tokenize: bool = True, **options: Any) -> Any:
        """The chat template's text for `conversation` (`tokenize=False`) or its ids, as transformers makes them."""
        if not self.chat_template and "chat_template" not in options:
            raise ValueError("the tokenizer has no chat template; pass one as chat_template=")
        return self.as_transformers().apply_chat_template(conversation, tokenize=tokenize, **options)

    def as_transformers(self) -> Any:
        """This tokenizer as transformers' own kind of object, made once (this is what imports transformers)."""
        if self._transformers is None:
            from transformers import PreTrainedTokenizerFast

            options = {f"{role}_token": token for role, (token, _) in self._special.items() if token is not None}
            options |= {"padding_side": self.padding_side, "chat_template": self.chat_template}
            self._transformers = PreTrainedTokenizerFast(tokenizer_object=self.backend, **options)
        return self._transformers

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Transformers' call, special tokens and all; `to_tokens` is the one that follows this class's policies."""
        return self.as_transformers()(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and unpickling ask for these before there is a backend
            raise AttributeError(name)
        if name in ("add_tokens", "add_special_tokens"):
            raise AttributeError(f"{name}: add tokens to the backend before it is wrapped, or the two would differ")
        return getattr(self.as_transformers(), name)

    def to_tokens(
        self,
        input: Any,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        n_ctx: int | None = None,
        truncate: bool = True,
    ) -> Int[Array, "batch pos"]:
        """The tokens of a string (a batch of one) or of a list of strings, the shorter ones padded.

        With `truncate` and `n_ctx`, what is longer than `n_ctx` tokens, BOS included, loses its end, with a warning.
        Raises ValueError for an empty list, for `prepend_bos=True` without a BOS token, and for a list that needs
        padding when there is no token to pad with; TypeError for anything but strings.
        """
        texts = [input] if isinstance(input, str) else input
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"to_tokens wants a string or a list of strings, not {reprlib.repr(input)}")
        if not texts:
            raise ValueError("to_tokens got an empty list; give at least one string")
        side = self._side(padding_side)
        rows = [self._row(text, prepend_bos) for text in texts]
        longest = max(map(len, rows))
        if truncate and n_ctx is not None and longest > n_ctx:
            warnings.warn(f"an input of {longest} tokens was cut to the context of {n_ctx}", UserWarning, stacklevel=2)
            rows, longest = [row[:n_ctx] for row in rows], n_ctx
        if any(len(row) < longest for row in rows) and self.pad_token_id is None:
            raise ValueError("inputs of different lengths need a pad token, and there is none; set tokenizer.pad_token")
        fill = [[self.pad_token_id] * (longest - len(row)) for row in rows]
        rows = [pad + row if side == "left" else row + pad for row, pad in zip(rows, fill, strict=True)]
        return jnp.asarray(np.asarray(rows, np.int32).reshape(len(rows), longest))

    def to_string(self, tokens: Any) -> str | list[str]:
        """The text of an id or a sequence of ids, or a list of texts for a batch; exact, special tokens included."""
        ids = self._ids(tokens)
        return [self._text(row) for row in ids.tolist()] if ids.ndim == 2 else self._text(ids.reshape(-1).tolist())

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> list[str] | list[list[str]]:
        """Each token's own text: a list for a string or one sequence of ids, a list of lists for several.

        A token's text is what transformers gives for `tokenizer.decode([id])`. So "Ġthe" of a GPT-2 is " the"; a
        tokenizer that drops the first space of a decoded text (Llama 2's) gives "the" for "▁the"; and a token that
        holds part of a character gives "�". The strings of a list are not padded.
        """
        self._side(padding_side)
        if isinstance(input, (list, tuple)) and any(isinstance(item, str) or np.ndim(item) for item in input):
            return [self.to_str_tokens(item, prepend_bos, padding_side) for item in input]
        batch = [self._row(input, prepend_bos)] if isinstance(input, str) else np.atleast_2d(self._ids(input)).tolist()
        rows = [[self._text([index]) for index in row] for row in batch]
        return rows[0] if len(rows) == 1 else rows

    def to_single_token(self, string: str) -> int:
        """The id of a string that is one token (BOS is never added); ValueError with the pieces if it is not."""
        if len(ids := self.encode(string)) != 1:
            raise ValueError(f"{string!r} is {len(ids)} tokens, not one: {[self._text([index]) for index in ids]}")
        return ids[0]

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id."""
        if (ids := self._ids(int_token)).size != 1:
            raise ValueError(f"one token was wanted, not tokens of shape {ids.shape}; to_str_tokens takes several")
        return self._text(ids.reshape(-1).tolist())

    def get_token_position(
        self,
        single_token: str | int,
        input: Any,
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:
        """Where a token (an id, or a string that is one token) stands in a string or in one sequence of ids.

        A BOS token that is put in front counts as position 0. ValueError when the token does not occur, when `mode` is
        neither "first" nor "last", or for a batch of several sequences.
        """
        if mode not in ("first", "last"):
            raise ValueError(f"mode is {mode!r}; give 'first' or 'last'")
        ids = self._ids(self.to_tokens(input, prepend_bos, padding_side) if isinstance(input, str) else input)
        if ids.ndim == 2 and len(ids) != 1:
            raise ValueError(f"a single sequence was wanted to look in, not a batch of shape {ids.shape}")
        wanted = self.to_single_token(single_token) if isinstance(single_token, str) else self._ids(single_token).item()
        found = np.flatnonzero(ids.reshape(-1) == wanted)
        if not len(found):
            raise ValueError(f"the token {self._text([wanted])!r} ({wanted}) is not in {self.to_str_tokens(ids)}")
        return int(found[0 if mode == "first" else -1])

    def attention_mask(
        self, tokens: Any, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> Int[Array, "batch pos"]:
        """1 where a token may be attended to, 0 on the padding: the run of pad tokens at the padded end of each row.

        Pad tokens elsewhere are text, for the pad token is often the EOS or BOS token. Where it is the BOS token and
        BOS was put in front, the pad token next to the text, or at the start of a row padded on the right, is the BOS
        and stays. One sequence is a batch of one. Takes traced tokens too. ValueError for more than two axes.
        """
        side = self._side(padding_side)
        try:
            xp, tokens = np, np.asarray(tokens)
        except jax.errors.TracerArrayConversionError:
            xp = jnp
        if tokens.ndim not in (1, 2):
            raise ValueError(f"tokens have shape {tokens.shape}; [batch, pos] or [pos] was wanted")
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        if self.pad_token_id is None:
            return jnp.ones(tokens.shape, jnp.int32)
        towards_text = slice(None) if side == "left" else slice(None, None, -1)
        run = xp.cumprod((tokens == self.pad_token_id)[:, towards_text].astype(np.int32), axis=1)[:, towards_text]
        if self.bos_token_id == self.pad_token_id and self._prepends(prepend_bos):
            bos = run.sum(axis=1, keepdims=True) - 1 if side == "left" else 0
            run = xp.where(np.arange(tokens.shape[1]) == bos, 0, run)
        return jnp.asarray(1 - run, jnp.int32)

    def _side(self, side: str | None) -> str:
        side = self.padding_side if side is None else side
        if side not in ("left", "right"):
            raise ValueError(f"padding_side is {side!r}; give 'left' or 'right'")
        return side

    def _prepends(self, prepend_bos: bool | None) -> bool:
        if prepend_bos and self.bos_token_id is None:
            raise ValueError("prepend_bos=True wants a BOS token, and the tokenizer has none; set tokenizer.bos_token")
        return bool(self.default_prepend_bos if prepend_bos is None else prepend_bos) and self.bos_token_id is not None

    def _row(self, text: str, prepend_bos: bool | None) -> list[int]:
        return ([self.bos_token_id] if self._prepends(prepend_bos) else []) + self.encode(text)

    def _text(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        exact = {} if self._fast else {"clean_up_tokenization_spaces": False}
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens, **exact)

    def _ids(self, tokens: Any, most: int = 2) -> np.ndarray:
        """Tokens as a checked NumPy array of at most `most` axes."""
        try:
            ids = np.asarray(tokens)
        except ValueError:
            raise ValueError("the sequences of tokens differ in length; pad them or give them one by one") from None
        ids = ids if ids.size else ids.astype(np.int64)  # an empty list would be one of floats
        if not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"tokens are integers, not {ids.dtype}; to_tokens turns text into tokens")
        if ids.ndim > most:
            raise ValueError(f"tokens have shape {ids.shape}; at most {most} axes were wanted")
        if len(outside := ids[(ids < 0) | (ids >= self._size)]):
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {self._size} tokens")
        return ids


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold a JSON object: {error}") from error


def _special_tokens(folder: Path, settings: Mapping[str, Any], backend: tokenizers.Tokenizer) -> dict[str, str | None]:
    """What each role's token is. A role named as null has none; one that no file names is looked up in config.json."""
    named = _read_json(folder / "special_tokens_map.json") | settings
    config = _read_json(folder / "config.json")
    special = {}
    for role in (f"{role}_token" for role in ROLES):
        token, index = named.get(role), config.get(f"{role}_id")
        index = index[0] if isinstance(index, list) and index else index  # a model may stop at several tokens
        token = backend.id_to_token(index) if role not in named and index is not None else token
        special[role] = token["content"] if isinstance(token, dict) else token
    return special


def _add_tokens(folder: Path, listed: Mapping[str, Any], backend: tokenizers.Tokenizer) -> None:
    """Adds tokens that tokenizer_config.json lists and tokenizer.json lacks, as transformers does; ids must agree."""
    for index, token in sorted(listed.items(), key=lambda item: int(item[0])):
        text = token["content"]
        if backend.token_to_id(text) is None:
            backend.add_tokens([tokenizers.AddedToken(**{k: v for k, v in token.items() if k != "__type"})])
        if (found := backend.token_to_id(text)) != int(index):
            raise CheckpointError(f"{folder}: {text!r} is {index} in tokenizer_config.json, {found} in tokenizer.json")


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | dict[str, str] | None:
    file, template = folder / "chat_template.jinja", settings.get("chat_template")
    if file.is_file():
        return file.read_text("utf-8")
    return {item["name"]: item["template"] for item in template} if isinstance(template, list) else template


def _auto_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, ImportError and more
        raise CheckpointError(f"{folder} has no tokenizer.json nor another tokenizer: {error}") from error

"""Builds a tokenizer from the vocabulary of a GGUF file: byte-level BPE, or SentencePiece BPE."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from jaxlens.errors import CheckpointError
from jaxlens.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Splitting:
    """How a byte-level tokenizer splits text into words before it merges tokens. The defaults are those of GPT-2."""

    pattern: str | None = None  # a regular expression for words; None: that of GPT-2, which is built into ByteLevel
    digits: bool = False  # every digit is a word
    nfc: bool = False  # text is first normalized to Unicode's NFC
    ignore_merges: bool = False  # a word in the vocabulary becomes one token without merges
    add_bos: bool = False


_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = Splitting(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _WORDS % "{1,3}", ignore_merges=True, add_bos=True)
_QWEN2 = Splitting(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _WORDS % "", nfc=True)
PRE_TOKENIZERS = {
    "gpt-2": Splitting(), "phi-2": Splitting(), "smollm": Splitting(digits=True), "starcoder": Splitting(digits=True),
    "refact": Splitting(digits=True), "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}  # fmt: skip


class Vocabulary:
    """The `tokenizer.ggml.*` metadata of a file, and the tokenizer that they describe."""

    NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # values of token_type

    def __init__(self, metadata: Mapping[str, Any]):
        self.metadata = metadata
        self.tokens: list[str] = self.get("tokens", [])
        self.types = self.get("token_type", [self.NORMAL] * len(self.tokens))
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        counts = {len(self.tokens), len(self.ids), len(self.types)}
        if counts == {0} or len(counts) > 1:
            sizes = f"{len(self.tokens)} tokens, {len(self.ids)} distinct tokens and {len(self.types)} token types"
            raise CheckpointError(f"the vocabulary has {sizes}; expected three equal numbers above 0")

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}", default)

    def token(self, role: str, default: int | None = None) -> str | None:
        index = self.get(f"{role}_token_id", default)
        if index is not None and index >= len(self.tokens):
            raise CheckpointError(f"{role}_token_id is {index}, but the vocabulary size is {len(self.tokens)}")
        return None if index is None else self.tokens[index]

    def backend(self, merges: list[tuple[str, ...]], **options: Any) -> tokenizers.Tokenizer:
        try:
            return tokenizers.Tokenizer(models.BPE(self.ids, merges, **options))
        except Exception as error:  # the Rust library raises bare Exception
            raise CheckpointError(f"the vocabulary does not match its merges: {error}") from error

    def byte_level(self) -> tuple[tokenizers.Tokenizer, bool]:
        """A byte-level tokenizer like that of GPT-2, and whether it adds BOS by default. Tokens are byte strings."""
        name = self.get("pre", "default")
        if name == "default":
            warnings.warn(
                "the GGUF file does not specify how its tokenizer splits text into words (tokenizer.ggml.pre); jaxlens "
                "splits text like GPT-2. If this is wrong, pass the original tokenizer as tokenizer=",
                stacklevel=4,
            )
        elif name not in PRE_TOKENIZERS:
            raise CheckpointError(f"tokenizer.ggml.pre is {name!r}; expected one of {', '.join(PRE_TOKENIZERS)}")
        splitting = PRE_TOKENIZERS.get(name, Splitting())
        merges = [tuple(merge.split(" ", 1)) for merge in self.get("merges", [])]
        backend = self.backend(merges, ignore_merges=splitting.ignore_merges)
        if splitting.nfc:
            backend.normalizer = normalizers.NFC()
        steps = [pre_tokenizers.Digits(individual_digits=True)] if splitting.digits else []
        if splitting.pattern:
            steps.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None))
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
        backend.decoder = decoders.ByteLevel()
        return backend, splitting.add_bos

    def sentencepiece(self) -> tuple[tokenizers.Tokenizer, bool]:
        """A SentencePiece tokenizer like that of Llama 2, and whether it adds BOS by default.

        "▁" is a space, and characters outside the vocabulary become byte tokens.
        """
        if self.get("remove_extra_whitespaces") or self.get("precompiled_charsmap"):
            raise CheckpointError("remove_extra_whitespaces and precompiled_charsmap are not supported")
        unknown = self.token("unknown", 0)
        backend = self.backend(self.merges(), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        spaces = [normalizers.Replace(" ", "▁")]
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.get("add_space_prefix", True):
            spaces, steps = [normalizers.Prepend("▁"), *spaces], [*steps, decoders.Strip(" ", 1, 0)]
        backend.normalizer, backend.decoder = normalizers.Sequence(spaces), decoders.Sequence(steps)
        return backend, True

    def merges(self) -> list[tuple[str, ...]]:
        """The pairs of tokens that concatenate to a token: highest score first, then longest left token first."""
        if "tokenizer.ggml.merges" in self.metadata:
            return [tuple(merge.split(" ", 1)) for merge in self.get("merges")]
        scores = self.get("scores", [])
        normal = [index for index, kind in enumerate(self.types) if kind == self.NORMAL]
        if len(scores) != len(self.tokens) or len({scores[index] for index in normal}) < min(2, len(normal)):
            raise CheckpointError("the vocabulary has no merges, and no scores from which merges could be derived")
        scored = []
        for index in normal:
            token = self.tokens[index]
            pairs = ((token[:i], token[i:]) for i in range(len(token) - 1, 0, -1))
            scored += [(scores[index], pair) for pair in pairs if pair[0] in self.ids and pair[1] in self.ids]
        return [pair for _, pair in sorted(scored, key=lambda entry: -entry[0])]

    def tokenizer(self) -> Tokenizer:
        """The tokenizer with its special tokens. The metadata determine whether it adds BOS and EOS to a text."""
        kinds = {"gpt2": self.byte_level, "llama": self.sentencepiece}
        if (model := self.get("model")) not in kinds:
            raise CheckpointError(f"tokenizer.ggml.model is {model!r}; expected {' or '.join(kinds)}")
        backend, add_bos = kinds[model]()
        defaults = {"bos": 1, "eos": 2, "unknown": 0} if model == "llama" else {}
        named = {role: self.token(role, defaults.get(role)) for role in ("bos", "eos", "unknown", "padding")}
        typed = list(zip(self.tokens, self.types, strict=True))
        control = [token for token, kind in typed if kind == self.CONTROL or token in named.values()]
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
        user_defined = [token for token, kind in typed if kind == self.USER_DEFINED]
        backend.add_tokens([AddedToken(token, normalized=False) for token in user_defined])
        adds = {"bos": self.get("add_bos_token", add_bos), "eos": self.get("add_eos_token", False)}
        bos, eos = ([role] if adds[role] and named[role] else [] for role in ("bos", "eos"))
        if bos or eos:
            backend.post_processor = processors.TemplateProcessing(
                single=[*bos, "$A", *eos],
                pair=[*bos, "$A", *eos, *(f"{item}:1" for item in [*bos, "$B", *eos])],
                special_tokens=[{"id": r, "ids": [self.ids[named[r]]], "tokens": [named[r]]} for r in [*bos, *eos]],
            )
        return Tokenizer(
            backend, bos_token=named["bos"], eos_token=named["eos"], pad_token=named["padding"],
            unk_token=named["unknown"], chat_template=self.metadata.get("tokenizer.chat_template"),
        )  # fmt: skip

"""Builds a tokenizer from the vocabulary of a GGUF file: byte-level BPE, or SentencePiece BPE."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from jaxlens.checkpoints.gguf.pre_tokenizers import PLAIN, PRE_TOKENIZERS
from jaxlens.errors import CheckpointError
from jaxlens.text.tokenizer import Tokenizer

OTHER_MODELS = {
    "t5": "Unigram", "bert": "WordPiece", "rwkv": "a trie of byte strings", "plamo2": "PLaMo's Unigram",
    "gemma4": "BPE on text without byte tokens",
}  # fmt: skip
"""Kinds of vocabularies in `tokenizer.ggml.model` that are not supported."""


class Vocabulary:
    """The `tokenizer.ggml.*` metadata of a file, and the tokenizer that they describe."""

    NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # values of token_type

    def __init__(self, metadata: Mapping[str, Any]):
        self.metadata = metadata
        # Some vocabularies contain empty tokens. Like llama.cpp, jaxlens gives them different names.
        self.tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(self.get("tokens", []))]
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
                stacklevel=5,
            )
        elif name not in PRE_TOKENIZERS:
            raise CheckpointError(f"tokenizer.ggml.pre is {name!r}; expected one of {', '.join(PRE_TOKENIZERS)}")
        splitting = PRE_TOKENIZERS.get(name, PLAIN)
        merges = [tuple(merge.split(" ", 1)) for merge in self.get("merges", [])]
        backend = self.backend(merges, ignore_merges=splitting.ignore_merges)
        if splitting.nfc:
            backend.normalizer = normalizers.NFC()
        before, after = (
            [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
            for patterns in (splitting.patterns, splitting.after)
        )
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*before, as_bytes, *after])
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
        """The pairs of tokens that concatenate to a token: highest score first, then longest left token first.

        Gemma's scores do not follow the order of its merges, but its token ids do (as transformers found).
        """
        if "tokenizer.ggml.merges" in self.metadata:
            return [tuple(merge.split(" ", 1)) for merge in self.get("merges")]
        scores = self.get("scores", [])
        normal = [index for index, kind in enumerate(self.types) if kind == self.NORMAL]
        if len(scores) != len(self.tokens) or len({scores[index] for index in normal}) < min(2, len(normal)):
            raise CheckpointError("the vocabulary has no merges, and no scores from which merges could be derived")
        scored = []
        if str(self.metadata.get("general.architecture")).startswith("gemma"):
            scores = range(0, -len(self.tokens), -1)
        for index in normal:
            token = self.tokens[index]
            pairs = ((token[:i], token[i:]) for i in range(len(token) - 1, 0, -1))
            scored += [(scores[index], pair) for pair in pairs if pair[0] in self.ids and pair[1] in self.ids]
        return [pair for _, pair in sorted(scored, key=lambda entry: -entry[0])]

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> Tokenizer | None:
        """The tokenizer that the metadata of a file describe. None if the file has no vocabulary."""
        absent = metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab")
        return None if absent and "tokenizer.ggml.tokens" not in metadata else cls(metadata).tokenizer()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer with its special tokens. The metadata determine whether it adds BOS and EOS to a text."""
        kinds = {"gpt2": self.byte_level, "llama": self.sentencepiece}
        if (model := self.get("model")) not in kinds:
            kind = f" ({OTHER_MODELS[model]})" if model in OTHER_MODELS else ""
            remedy = "pass the original tokenizer as tokenizer="
            raise CheckpointError(f"tokenizer.ggml.model is {model!r}{kind}; expected {' or '.join(kinds)}; {remedy}")
        backend, add_bos = kinds[model]()
        defaults = {"bos": 1, "eos": 2, "unknown": 0} if model == "llama" else {}
        named = {role: self.token(role, defaults.get(role)) for role in ("bos", "eos", "unknown", "padding")}
        typed = list(zip(self.tokens, self.types, strict=True))
        control = [token for token, kind in typed if kind == self.CONTROL or token in named.values()]
        strips = self.strips_spaces(model)
        backend.add_special_tokens([
            AddedToken(token, special=True, normalized=False, rstrip=strips(token)) for token in control
        ])  # fmt: skip
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
            unk_token=named["unknown"], chat_template=self.chat_template(),
        )  # fmt: skip

    def strips_spaces(self, model: str) -> Callable[[str], bool]:
        """Whether a control token removes the spaces after it. The vocabularies of Phi 3 have such tokens.

        No metadata say so: llama.cpp too goes by the name of the model (`general.name`).
        """
        name = str(self.metadata.get("general.name", "")).lower()
        is_phi3 = model == "llama" and ("phi-3" in name or "phi3" in name)
        return lambda token: is_phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")

    def chat_template(self) -> str | dict[str, str] | None:
        """The chat template, or several templates by name."""
        default, prefix = self.metadata.get("tokenizer.chat_template"), "tokenizer.chat_template."
        named = {key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)}
        return {"default": default, **named} if named and default else named or default

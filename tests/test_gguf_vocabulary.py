"""Vocabularies of GGUF files split text like the published tokenizers."""

import functools
import json

import gguf
import pytest
import tokenizers
import transformers
from support.gguf_writer import write_gguf
from test_gguf import TEXTS
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

from jaxlens import CheckpointError
from jaxlens.checkpoints.gguf.pre_tokenizers import PRE_TOKENIZERS
from jaxlens.checkpoints.gguf.vocabulary import Vocabulary

MORE = (
    "camelCase HTTPServer McDonald's ISN'T it's WE'LL 'tis", "1234567 12 345,678.90 ٣٤٥ ²³½",
    "a\n\n\nb\r\n\r\n  c\t\td   ",
    "x = {'a': [1, 2]}; // done!!! <|user|> #tag @me", "北京2024年 ひらがな カタカナ 한국어", "e\u0301 Å ｆｕｌｌ ǅ ﬁ",
    "   leading", "don't—“quoted”…", "αβγ ΔΕΖ Привет Мир", "\u00a0\u2003x", "$100 + 50% = <y> ^~|`",
)  # fmt: skip
ALL = tuple(text for text in (*TEXTS, *MORE) if "<|endoftext|>" not in text)  # a token of transformers' classes
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


@functools.cache
def trained() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE that was trained on the texts, split only at line ends."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\S+|\s"), "isolated"), byte_level(),
    ])  # fmt: skip
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=ALPHABET, show_progress=False)
    model.train_from_iterator(ALL * 3, trainer)
    state = json.loads(model.to_str())["model"]
    tokens = [token for token, _ in sorted(state["vocab"].items(), key=lambda item: item[1])]
    return tokens, [" ".join(merge) for merge in state["merges"]]


def metadata(pre, **changes):
    tokens, merges = trained()
    special = ["<s>", "</s>", "<tool>"]
    keys = {
        "model": "gpt2", "pre": pre, "tokens": [*tokens, *special], "token_type": [1] * len(tokens) + [3, 3, 4],
        "merges": merges, "bos_token_id": len(tokens), "eos_token_id": len(tokens) + 1,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in (keys | changes).items() if value is not None}


def ours(pre, **changes):
    return Vocabulary(metadata(pre, **changes)).tokenizer()


def reference(pre_tokenizer, normalizer=None):
    """A byte-level tokenizer with the same merges, and the parts of a published tokenizer.json."""
    tokens, merges = trained()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ", 1)) for merge in merges]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    return backend


def byte_level(use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(*patterns):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, byte_level()])


@pytest.mark.parametrize("pre", sorted(theirs.GGUF_PRE_TOKENIZER_SPLITS))
def test_splits_that_transformers_knows(pre):
    """phi-4 (dbrx), Nemo (tekken), Phi-4-mini (gpt-4o), Llama 3, Qwen, …: the patterns in transformers' own reader."""
    expected = reference(split(theirs.GGUF_PRE_TOKENIZER_SPLITS[pre]))
    tokenizer = ours(pre)
    if PRE_TOKENIZERS[pre].nfc:  # as in the published tokenizer.json, but not in transformers' reader
        expected.normalizer = normalizers.NFC()
    for text in ALL:
        assert tokenizer.encode(text) == expected.encode(text).ids, text
        assert PRE_TOKENIZERS[pre].nfc or tokenizer.to_string(tokenizer.encode(text)) == text


@pytest.mark.parametrize("pre", ["tekken", "dbrx", "gpt-4o", "qwen2"])
def test_files_read_by_transformers(pre, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "llama", metadata(pre, add_bos_token=False), {})
    expected = transformers.AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=path.name)
    tokenizer = ours(pre, add_bos_token=False)
    for text in ALL:
        if not PRE_TOKENIZERS[pre].nfc or text == normalizers.NFC().normalize_str(text):
            assert tokenizer.encode(text) == expected.encode(text, add_special_tokens=False), text
    assert tokenizer.encode("a<tool>b</s>")[1] == expected.convert_tokens_to_ids("<tool>")


def published() -> dict[str, tokenizers.Tokenizer]:
    """Tokenizers by name in `tokenizer.ggml.pre`: from transformers, and from known tokenizer.json files."""
    tokens, merges = trained()
    vocabulary, pairs = {t: i for i, t in enumerate(tokens)}, [tuple(merge.split(" ", 1)) for merge in merges]

    def made(kind):
        return kind(vocab=vocabulary, merges=pairs).backend_tokenizer

    digits = pre_tokenizers.Digits(individual_digits=True)
    falcon = [
        pre_tokenizers.Punctuation("contiguous"), byte_level(True), pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]  # fmt: skip
    coder = [
        *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (
            "[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")),
        digits, byte_level(),
    ]  # fmt: skip
    cl100k = TikTokenConverter().pattern
    return {
        "gpt-2": made(transformers.GPT2Tokenizer), "mpt": made(transformers.GPTNeoXTokenizer),
        "olmo": made(transformers.GPTNeoXTokenizer), "command-r": made(transformers.CohereTokenizer),
        "qwen2": made(transformers.Qwen2Tokenizer), "llama-bpe": reference(split(cl100k)),
        "glm4": reference(split(cl100k)), "falcon": reference(pre_tokenizers.Sequence(falcon)),
        "starcoder": reference(pre_tokenizers.Sequence([digits, byte_level(True)])),
        "smollm": reference(pre_tokenizers.Sequence([digits, byte_level(True)])),
        "refact": reference(pre_tokenizers.Sequence([digits, byte_level(True)])),
        "deepseek-coder": reference(pre_tokenizers.Sequence(coder)),
        "bloom": reference(split(" ?[^(\\s|[.,!?…。，、।۔،])]+")),
    }  # fmt: skip


PUBLISHED = "gpt-2 mpt olmo command-r qwen2 llama-bpe glm4 falcon starcoder smollm refact deepseek-coder bloom"


@pytest.mark.parametrize("pre", PUBLISHED.split())
def test_published_tokenizers(pre):
    expected, tokenizer = published()[pre], ours(pre)
    for text in ALL:
        assert tokenizer.encode(text) == expected.encode(text, add_special_tokens=False).ids, text


PIECES = {  # what each way does with numbers, letters, symbols and line ends
    "deepseek-v3": ("ab 12345  x!?\n\ny", ["ab", " ", "123", "45", " ", " x", "!?\n\n", "y"]),
    "deepseek-llm": ("ab 12345 x!\n", ["ab", " ", "12345", " x", "!", "\n"]),
    "viking": ("ab 12, c", ["ab", " ", "1", "2", ",", " c"]),
    "superbpe": ("ab 1234567 c d", ["ab ", "1", "234", "567", " c d"]),
    "kimi-k2": ("北京 aB12345", ["北京", " a", "B", "123", "45"]),
    "chameleon": ("a  1.b", ["a", "  ", "1", ".", "b"]),
    "bailingmoe": ("it's 12\n\nx", ["it", "'s", " ", "1", "2", "\n\n", "x"]),
    "exaone-moe": ("a b c 12", ["a b c", " ", "1", "2"]),
    "jais-2": ("a     b", ["a", "    ", " b"]),
    "minicpm5": ("ab 12345", ["ab", " ", "123", "45"]),
    "laguna": ("ab\n\ncd 1", ["ab", "\n\n", "cd", " ", "1"]),
    "ufakzeka": ("don't 12", ["don", "'t", " ", "1", "2"]),
    "seed-coder": ("a!!\n", ["a", "!!", "\n"]),
    "youtu": ("aBc 12/\n", ["a", "Bc", " ", "1", "2", "/\n"]),
    "tiny_aya": ("x1234567", ["x", "1", "234", "567"]),
    "hunyuan": ("ab 12", ["ab", " ", "1", "2"]),
    "spark2_5": ("ab!\n12", ["ab", "!", "\n", "1", "2"]),
    "stablelm2": ("WE'LL 12", ["WE", "'LL", " ", "1", "2"]),
    "exaone": ("ab 12", ["ab", " ", "1", "2"]),
    "minerva-7b": ("ab 12", ["ab", " ", "1", "2"]),
}


@pytest.mark.parametrize("pre", PIECES)
def test_pieces(pre):
    text, expected = PIECES[pre]
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre].patterns]
    assert [piece for piece, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)] == expected


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_way_keeps_the_text(pre):
    """All patterns compile, and tokens of any text decode to the text."""
    tokenizer = ours(pre)
    for text in ALL:
        expected = normalizers.NFC().normalize_str(text) if PRE_TOKENIZERS[pre].nfc else text
        assert tokenizer.to_string(tokenizer.encode(text)) == expected
    assert tokenizer.prepends_bos == PRE_TOKENIZERS[pre].add_bos


def test_words_of_the_vocabulary_are_not_split_in_some_vocabularies():
    tokens, _ = trained()
    more = {"tokens": [*tokens, "zqzq"], "token_type": [1] * (len(tokens) + 1)}  # no merges lead to it
    assert ours("tekken", **more, bos_token_id=0, eos_token_id=1).encode("zqzq") == [len(tokens)]
    assert len(ours("gpt-4o", **more, bos_token_id=0, eos_token_id=1).encode("zqzq")) > 1


def test_empty_tokens_get_names():
    tokens, _ = trained()
    changes = {"tokens": [*tokens, "", ""], "token_type": [*[1] * len(tokens), 5, 5]}
    tokenizer = ours("gpt-2", **changes, bos_token_id=None, eos_token_id=None)
    assert tokenizer.convert_ids_to_tokens([len(tokens)]) == [f"[EMPTY_{len(tokens)}]"]


def test_several_chat_templates():
    keys = metadata("gpt-2") | {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}
    assert Vocabulary(keys).tokenizer().chat_template == {"default": "a", "tool_use": "b"}


def test_a_file_without_a_vocabulary():
    assert Vocabulary.read({}) is None and Vocabulary.read({"tokenizer.ggml.model": "none"}) is None
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.model is None; expected gpt2 or llama"):
        Vocabulary.read({"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1]})


def sentencepiece(name="", architecture="llama", scores=None):
    tokens = ["<unk>", "<s>", "</s>", "<|end|>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abc▁", "ab", "bc", "  "]
    kinds = [2, 3, 3, 3, *[6] * 256, *[1] * 6, 4]
    return Vocabulary({
        "general.name": name, "general.architecture": architecture, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.scores": scores or [0.0] * 264 + [-1.0, -2.0, 0.0],
    }).tokenizer()  # fmt: skip


def test_special_tokens_of_phi_3_remove_the_spaces_after_them():
    """llama.cpp goes by the name of the model, because no metadata say so."""
    plain, phi = sentencepiece(), sentencepiece("Phi-3 Mini 4K Instruct")
    assert plain.to_str_tokens("a<|end|> b", prepend_bos=False) == ["a", "<|end|>", " ", "b"]
    assert phi.convert_ids_to_tokens(phi.encode("a<|end|> b")) == ["a", "<|end|>", "b"]
    assert phi.convert_ids_to_tokens(phi.encode("a<s> b")) == ["a", "<s>", "▁", "b"]


def test_gemma_merges_in_the_order_of_its_tokens():
    scores = [0.0] * 264 + [-2.0, -1.0, 0.0]  # "bc" has the higher score, "ab" the lower id
    assert sentencepiece(scores=scores).to_str_tokens("abc", prepend_bos=False) == ["a", "bc"]
    gemma = sentencepiece(architecture="gemma2", scores=scores)
    assert gemma.to_str_tokens("abc  a", prepend_bos=False) == ["ab", "c", "  ", "a"]


def test_the_table_has_the_names_of_the_package():
    """Names that the vocabularies of decoders have, as llama.cpp's converter writes them."""
    assert gguf.Keys.Tokenizer.PRE == "tokenizer.ggml.pre" and len(PRE_TOKENIZERS) > 75

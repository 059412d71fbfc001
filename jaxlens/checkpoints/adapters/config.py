"""Reads adapter_config.json: the scale of each low-rank update, and which modules it applies to."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlens.checkpoints.safetensors_reader import read_json
from jaxlens.errors import CheckpointError

FILE = "adapter_config.json"

IGNORED = frozenset(
    " ".join(
        (
            "auto_mapping inference_mode lora_dropout peft_version loftq_config eva_config corda_config lora_ga_config",
            "velora_config monteclora_config runtime_config megatron_core qalora_group_size exclude_modules",
            "base_model_class parent_library enable_lora merge_weights",
        )
    ).split()
)
"""Fields without effect on the weights of a trained adapter. (`exclude_modules` selects modules before training.)"""

UNSUPPORTED: Mapping[str, str] = {
    "megatron_config": "Megatron's parallel layers", "layer_replication": "repeated layers of the base model",
    "use_qalora": "QALoRA, which pools the input", "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing", "use_bdlora": "block-diagonal LoRA", "kasa_config": "KaSA",
}  # fmt: skip
"""Fields that change how an adapter acts, and what they stand for. Each must be null or false."""

CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq", "mica")
"""Values of `init_lora_weights` with which training starts from changed weights of the base model."""

READ = frozenset(
    (
        "alpha_pattern", "base_model_name_or_path", "bias", "ensure_weight_tying", "fan_in_fan_out",
        "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save",
        "peft_type", "r", "rank_pattern", "revision", "target_modules", "target_parameters", "task_type",
        "trainable_token_indices", "use_dora", "use_rslora",
    )
)  # fmt: skip
"""The fields that are read, or that the tensors of the adapter show as well (`bias`, `fan_in_fan_out`)."""


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The fields of an adapter_config.json that describe its weights. `path` is the file."""

    path: Path
    fields: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Reads the file of a folder. Raises a CheckpointError if the adapter is not a LoRA that jaxlens supports."""
        config = cls(folder / FILE, read_json(folder / FILE))
        kind, fields = config.fields.get("peft_type"), config.fields
        if kind != "LORA":
            raise config.refused("peft_type", "expected 'LORA', the only kind of adapter that jaxlens supports")
        for name, meaning in UNSUPPORTED.items():
            if fields.get(name):
                raise config.refused(name, f"jaxlens does not support {meaning}")
        if fields.get("lora_bias") and fields.get("use_dora"):
            raise config.refused("lora_bias", "expected false with use_dora: jaxlens does not support both together")
        init = str(fields.get("init_lora_weights")).lower()
        if init.startswith(CHANGES_BASE):
            remedy = "save the adapter with peft's save_pretrained(path_initial_model_for_weight_conversion=...)"
            problem = "it changes the weights of the base model before training"
            raise config.refused("init_lora_weights", f"{problem}; {remedy}")
        if unread := sorted(name for name in fields.keys() - READ - IGNORED - UNSUPPORTED.keys() if fields[name]):
            listed = ", ".join(f"{name} = {fields[name]!r}" for name in unread)
            raise CheckpointError(f"{config.path} has fields that jaxlens does not read: {listed}")
        config._check_types()
        return config

    def refused(self, name: str, why: str) -> CheckpointError:
        """The error for a field: its name, its value, and `why` the value cannot be used."""
        return CheckpointError(f"{self.path}: {name} is {self.fields.get(name)!r}; {why}")

    @property
    def base(self) -> str:
        """The name or path of the base model."""
        name = self.fields.get("base_model_name_or_path")
        if not name or not isinstance(name, str):
            raise self.refused("base_model_name_or_path", "pass the base model, and the adapter as adapter=")
        return name

    def scale(self, module: str, rank: int) -> float:
        """The factor of a module's low-rank update: alpha / r, or alpha / √r (Kalajdzievski 2023, arXiv 2312.03732)."""
        expected = self._of(module, "rank_pattern", "r", 8)
        if rank != expected:
            raise CheckpointError(f"{self.path}: the rank of {module} is {expected}, but its weights have rank {rank}")
        alpha = self._of(module, "alpha_pattern", "lora_alpha", 8)
        return alpha / (math.sqrt(rank) if self.fields.get("use_rslora") else rank)

    def targets(self, module: str) -> bool:
        """Whether `target_modules`, with the layers that it applies to, selects a module."""
        wanted = self.fields.get("target_modules")
        if self.fields.get("ensure_weight_tying") and not re.search(r"\.\d+\.", module):
            return True  # peft lists the embedding, and not the head that it updates with it
        if isinstance(wanted, str):
            return wanted == "all-linear" or re.fullmatch(wanted, module) is not None
        if not any(module == name or module.endswith(f".{name}") for name in wanted or ()):
            return False
        layers, patterns = self.fields.get("layers_to_transform"), self.fields.get("layers_pattern") or r"[^.]*"
        if layers is None or layers == [] or module in wanted:
            return True
        layers = [layers] if isinstance(layers, int) else layers
        patterns = [patterns] if isinstance(patterns, str) else patterns
        found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
        return any(match and int(match[1]) in layers for match in found)

    def saves(self, module: str) -> bool:
        """Whether the adapter has a copy of a module of its own (`modules_to_save`)."""
        return any(module == name or module.endswith(f".{name}") for name in self.fields.get("modules_to_save") or ())

    def parameters(self, module: str) -> list[str]:
        """The parameters of a module that the adapter updates by name (`target_parameters`)."""
        targets = [(name, name.rpartition(".")[2]) for name in self.fields.get("target_parameters") or ()]
        return [parameter for name, parameter in targets if f".{module}.{parameter}".endswith(f".{name}")]

    def tokens(self, module: str) -> Sequence[int]:
        """The rows of an embedding that the adapter replaces (`trainable_token_indices`)."""
        indices = self.fields.get("trainable_token_indices")
        if isinstance(indices, Mapping):
            indices = next((rows for name, rows in indices.items() if f".{module}".endswith(f".{name}")), None)
        return indices or ()

    def _of(self, module: str, pattern: str, default: str, otherwise: int) -> Any:
        """The value of the first key of `pattern` that matches a module, or that of the field `default`."""
        values = self.fields.get(pattern) or {}
        key = next((key for key in values if re.match(rf"(.*\.)?({key})$", module)), None)
        return self.fields.get(default, otherwise) if key is None else values[key]

    def _check_types(self) -> None:
        numbers = {"r": (int,), "lora_alpha": (int, float)}
        for name, types in numbers.items():
            value = self.fields.get(name, 8)
            if type(value) not in types or not math.isfinite(value) or (name == "r" and value < 1):
                raise self.refused(name, "expected a positive number")
        for name in ("rank_pattern", "alpha_pattern"):
            values = self.fields.get(name) or {}
            if not isinstance(values, Mapping) or not all(type(value) in (int, float) for value in values.values()):
                raise self.refused(name, "expected an object with a number for each module")
        for name in ("target_modules", "modules_to_save", "target_parameters", "layers_pattern"):
            value = self.fields.get(name)
            if not isinstance(value, str | list | None) or not all(isinstance(entry, str) for entry in value or ()):
                raise self.refused(name, "expected a list of names, or null")
        for name in ("rank_pattern", "alpha_pattern", "target_modules", "layers_pattern"):
            self._check_patterns(name)
        indices, layers = self.fields.get("trainable_token_indices"), self.fields.get("layers_to_transform")
        for value in indices.values() if isinstance(indices, Mapping) else [indices]:
            if not (_are_indices(value) or value is None):
                raise self.refused(
                    "trainable_token_indices", "expected a list of tokens, also for each module, or null"
                )
        if not (layers is None or _are_indices([layers]) or _are_indices(layers)):
            raise self.refused("layers_to_transform", "expected a layer, a list of layers, or null")

    def _check_patterns(self, name: str) -> None:
        """Raises a CheckpointError unless the regular expressions in a field can be compiled."""
        value = self.fields.get(name) or ()
        for pattern in [value] if isinstance(value, str) else value:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise self.refused(name, f"expected regular expressions, but {pattern!r} is none: {error}") from error


def _are_indices(value: Any) -> bool:
    """Whether a value is a list of integers that are not negative."""
    return isinstance(value, list) and all(type(entry) is int and entry >= 0 for entry in value)

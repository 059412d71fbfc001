"""Reads config.json and records which fields were read, so that no field is ignored by accident."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxlens.checkpoints.rules.completion import completed
from jaxlens.errors import CheckpointError

IGNORED_FIELDS = frozenset(
    " ".join(
        (
            # the origin of the files, and the dtype, which the caller chooses
            "model_type architectures auto_map transformers_version name_or_path _name_or_path _commit_hash",
            "dtype torch_dtype use_bfloat16 torchscript tf_legacy_loss gradient_checkpointing chunk_size_feed_forward",
            "attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal",
            "_flash_attn_2_enabled experts_implementation transformers.js_config unsloth_fixed unsloth_version",
            "custom_pipelines xla_device pretraining_tp",  # pretraining_tp: the number of slices of a matrix product
            # tokens
            "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id",
            "decoder_start_token_id tokenizer_class prefix keys_to_ignore_at_inference",
            "max_sequence_length model_max_length tokenizer_model_max_length tokenizer_padding_side",
            # training
            "initializer_range initializer_factor init_std neftune_noise_alpha loss_type",
            "attention_dropout hidden_dropout classifier_dropout embedding_dropout resid_dropout embed_dropout",
            "attn_pdrop embd_pdrop resid_pdrop summary_first_dropout dropout activation_dropout residual_dropout",
            "attention_probs_dropout_prob hidden_dropout_prob layerdrop",
            # return values, and tasks other than predicting the next token
            "use_cache return_dict use_return_dict output_hidden_states output_attentions output_past",
            "tie_last_hidden_states is_decoder tie_encoder_decoder finetuning_task task_specific_params problem_type",
            "id2label label2id num_labels _num_labels summary_type summary_use_proj summary_activation",
            "summary_proj_to_labels",
            # generation
            "max_length min_length max_new_tokens min_new_tokens do_sample early_stopping max_time num_beams",
            "num_beam_groups penalty_alpha temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff",
            "diversity_penalty repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size bad_words_ids force_words_ids renormalize_logits forced_bos_token_id",
            "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens",
            "begin_suppress_tokens num_return_sequences output_scores return_dict_in_generate cache_implementation",
        )
    ).split()
)
"""Fields without effect on a forward pass, in every architecture."""

IGNORED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,), "add_cross_attention": (False,), "pruned_heads": ({},),
}  # fmt: skip
"""Fields that have no effect with one of these values. jaxlens supports no other value."""

ROPE_FIELDS: Mapping[str, str | None] = {
    "rope_theta": "rope_theta", "rope_local_base_freq": "rope_theta", "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor", "rotary_pct": "partial_rotary_factor", "rope_scaling": None,
}  # fmt: skip
"""Older fields that transformers moves into `rope_parameters`, and their names in it. `rope_scaling` is an object whose
fields keep their names."""

COUNT_FIELDS = re.compile(r"(n|num)_(\w+_)?(layers?|experts)|attention_types")
MAX_COUNT = 10_000
"""The largest number of layers or experts. The check runs before lists with an entry per layer or expert are built,
because a larger number could exhaust the memory."""

_REQUIRED = object()


class Reader:
    """The fields of a config.json. Records which fields were read. A null field counts as absent.

    Example:
        >>> hf = Reader({"hidden_size": 12, "rope_parameters": {"rope_theta": 1e4, "factor": 2.0}})
        >>> hf.size("hidden_size"), hf.inside("rope_parameters").number("rope_theta"), hf("head_dim", None)
        (12, 10000.0, None)
        >>> hf.unread()
        {'rope_parameters.factor': 2.0}
    """

    def __init__(self, fields: Mapping[str, Any], prefix: str = ""):
        self._fields, self._prefix = dict(fields), prefix
        self._read: set[str] = set()
        self._nested: dict[str, Reader] = {}

    def __call__(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value of a field, or `default` if the field is absent or null."""
        self._read.add(name)
        value = self._fields.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise CheckpointError(f"config.json has no {self._prefix}{name}, which this architecture needs")
        return default

    def size(self, name: str, default: Any = _REQUIRED) -> Any:
        """A positive integer below 2^31."""
        value = self(name, default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise self.refused(name, "expected a positive integer")
        if value is not default and value >= 2**31:
            raise self.refused(name, "expected an integer below 2^31")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """A finite number."""
        value = self(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refused(name, "expected a finite number")
        return float(value)

    def positive(self, name: str, default: Any = _REQUIRED) -> Any:
        """A finite number above zero."""
        value = self.number(name, default)
        if value is not default and value <= 0:
            raise self.refused(name, "expected a number above zero")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers."""
        values = self(name)
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise self.refused(name, "expected a list of numbers")
        return tuple(map(float, values))

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        if not isinstance(value := self(name, default), bool):
            raise self.refused(name, "expected true or false")
        return value

    def expect(self, name: str, *accepted: Any, because: str) -> None:
        """Raises a CheckpointError unless the field is absent or has one of the accepted values."""
        if (value := self(name, None)) is not None and value not in accepted:
            raise self.refused(name, f"expected {' or '.join(map(repr, accepted)) or 'null'}: {because}")

    def inside(self, name: str) -> "Reader":
        """The fields of a nested object."""
        if name not in self._nested:
            value = self(name)
            if not isinstance(value, Mapping):
                raise self.refused(name, "expected an object")
            self._nested[name] = Reader(value, f"{self._prefix}{name}.")
        return self._nested[name]

    def refused(self, name: str, why: str) -> CheckpointError:
        """The error for a field: its name, its value, and `why` the value cannot be used."""
        return CheckpointError(f"config.json: {self._prefix}{name} is {_shortened(self._fields.get(name))}; {why}")

    def unread(self, unused: Iterable[str] = ()) -> dict[str, Any]:
        """The fields that were not read, by dotted name. Fields without effect on a forward pass are left out."""
        accounted_for = {*self._read, *IGNORED_FIELDS, *unused}
        return {
            f"{self._prefix}{name}": value
            for name, value in self._fields.items()
            if value is not None and name not in accounted_for and value not in IGNORED_VALUES.get(name, ())
        } | {name: value for reader in self._nested.values() for name, value in reader.unread(unused).items()}

    def check_all_read(self, unused: Iterable[str] = ()) -> None:
        """Raises a CheckpointError that lists the `unread` fields, if there are any."""
        if unread := self.unread(unused):
            listed = ", ".join(f"{name} = {_shortened(value)}" for name, value in unread.items())
            remedy = "remove them from config.json or add them to `unused` in the family's file"
            problem = f"config.json has fields that jaxlens does not read: {listed}. The model may depend on them"
            raise CheckpointError(f"{problem}. If they do not change inference, {remedy}")


def complete(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, completed with the defaults of transformers' config class.

    Older spellings (`rope_theta` and `rope_scaling` as fields of the config) are converted to the current spelling
    (`rope_parameters`). A field that the class drops is kept, so that `Reader.unread` can report it. If transformers
    does not support the `model_type`, the fields are returned unchanged.
    """
    _check_counts(fields)
    ignored = {name for name in IGNORED_FIELDS if not name.endswith("_token_id")}
    relevant = {name: value for name, value in fields.items() if name not in ignored or name == "model_type"}
    if (result := completed(relevant)) is None:
        return dict(fields)
    all_fields, names = result
    dropped = [name for name in relevant if names.get(name, name) not in all_fields]
    return all_fields | {name: relevant[name] for name in dropped if not is_converted(name, relevant[name], all_fields)}


def is_converted(name: str, value: Any, all_fields: Mapping[str, Any]) -> bool:
    """Whether a dropped field is an older spelling whose value is in `rope_parameters`."""
    if name not in ROPE_FIELDS or value is None:
        return name in ROPE_FIELDS
    older = value if isinstance(value, Mapping) else {ROPE_FIELDS[name]: value}
    rope = all_fields.get("rope_parameters") or {}
    objects = [rope, *(entry for entry in rope.values() if isinstance(entry, Mapping))]  # one per layer type
    return any(all(entry.get(key) == expected for key, expected in older.items()) for entry in objects)


def _check_counts(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            _check_counts(value)
        elif COUNT_FIELDS.fullmatch(name) and max(_integers(value), default=0) > MAX_COUNT:
            raise CheckpointError(f"config.json: {name} is {_shortened(value)}; expected at most {MAX_COUNT:,}")


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _integers(entry)
    elif isinstance(value, int):
        yield value


def _shortened(value: Any, length: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"

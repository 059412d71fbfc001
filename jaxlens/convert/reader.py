"""A config.json that remembers what was read of it, so that nothing in it is passed over unseen."""

import copy
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxlens.errors import CheckpointError

NEUTRAL = frozenset().union(
    *map(
        str.split,
        (
            # where the files came from, and the number type, which is the caller's choice
            "model_type architectures auto_map transformers_version name_or_path _name_or_path _commit_hash",
            "dtype torch_dtype use_bfloat16 torchscript tf_legacy_loss gradient_checkpointing chunk_size_feed_forward",
            "attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal",
            "_flash_attn_2_enabled experts_implementation transformers.js_config unsloth_fixed unsloth_version",
            "custom_pipelines xla_device pretraining_tp",  # the last: in how many parts to multiply matrices
            # text
            "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id",
            "decoder_start_token_id tokenizer_class prefix keys_to_ignore_at_inference",
            "max_sequence_length model_max_length tokenizer_model_max_length tokenizer_padding_side",
            # training
            "initializer_range initializer_factor init_std neftune_noise_alpha loss_type",
            "attention_dropout hidden_dropout classifier_dropout embedding_dropout resid_dropout embed_dropout",
            "attn_pdrop embd_pdrop resid_pdrop summary_first_dropout dropout activation_dropout residual_dropout",
            "attention_probs_dropout_prob hidden_dropout_prob layerdrop",
            # return values and other tasks than predicting the next token
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
        ),
    )
)
"""Fields that no forward pass depends on, in any architecture."""

NEUTRAL_AT: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "per_layer_config": (None,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
"""Fields that change nothing while they have one of these values, and that nothing here can express otherwise."""

CONVERTED: Mapping[str, str | None] = {
    "rope_theta": "rope_theta",
    "rope_local_base_freq": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
    "rope_scaling": None,
}
"""Fields of older files that transformers moves into `rope_parameters`, and what they are called there. `rope_scaling`
is an object whose fields keep their names."""

REPEATS = re.compile(r"(n|num)_(\w+_)?(layers?|experts)|attention_types")
MOST_REPEATS = 10_000
"""Layers and experts are listed one by one. A config.json that asks for more than this is damaged, and is refused
before the list uses up time and memory."""

_REQUIRED = object()


class Reader:
    """Fields by name, each marked as read when it is asked for. A field that is null counts as left out.

    Example:
        >>> hf = Reader({"hidden_size": 12, "rope_parameters": {"rope_theta": 1e4, "factor": 2.0}})
        >>> hf.size("hidden_size"), hf.inside("rope_parameters").number("rope_theta"), hf("head_dim", None)
        (12, 10000.0, None)
        >>> hf.unread()
        {'rope_parameters.factor': 2.0}
    """

    def __init__(self, fields: Mapping[str, Any], within: str = ""):
        self._fields, self._within = dict(fields), within
        self._read: set[str] = set()
        self._inside: dict[str, Reader] = {}

    def __call__(self, name: str, default: Any = _REQUIRED) -> Any:
        """The field's value, or `default` where it is absent or null."""
        self._read.add(name)
        value = self._fields.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise CheckpointError(f"config.json has no {self._within}{name}, which this architecture needs")
        return default

    def size(self, name: str, default: Any = _REQUIRED) -> Any:
        """A positive whole number, small enough for an index."""
        value = self(name, default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise self.refused(name, "a positive whole number is wanted")
        if value is not default and value >= 2**31:
            raise self.refused(name, "no model is as large")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """A finite number."""
        value = self(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refused(name, "a number is wanted")
        return float(value)

    def positive(self, name: str, default: Any = _REQUIRED) -> Any:
        """A finite number above zero."""
        value = self.number(name, default)
        if value is not default and value <= 0:
            raise self.refused(name, "a number above zero is wanted")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers."""
        values = self(name)
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise self.refused(name, "a list of numbers is wanted")
        return tuple(map(float, values))

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        if not isinstance(value := self(name, default), bool):
            raise self.refused(name, "true or false is wanted")
        return value

    def expect(self, name: str, *accepted: Any, because: str) -> None:
        """Refuses every value but those that can be expressed; a field that is left out is accepted."""
        if (value := self(name, None)) is not None and value not in accepted:
            raise self.refused(name, f"{' or '.join(map(repr, accepted)) or 'null'} is wanted: {because}")

    def inside(self, name: str) -> "Reader":
        """The fields of a nested object."""
        if name not in self._inside:
            value = self(name)
            if not isinstance(value, Mapping):
                raise self.refused(name, "an object is wanted")
            self._inside[name] = Reader(value, f"{self._within}{name}.")
        return self._inside[name]

    def refused(self, name: str, why: str) -> CheckpointError:
        """The error that names a field, its value and what is wrong with it."""
        return CheckpointError(f"config.json: {self._within}{name} is {_brief(self._fields.get(name))}; {why}")

    def unread(self, unused: Iterable[str] = ()) -> dict[str, Any]:
        """Fields that nothing asked for and that are not known to be without effect, by dotted name."""
        known = {*self._read, *NEUTRAL, *unused}
        return {
            f"{self._within}{name}": value
            for name, value in self._fields.items()
            if name not in known and value not in NEUTRAL_AT.get(name, ())
        } | {name: value for reader in self._inside.values() for name, value in reader.unread(unused).items()}

    def check_all_read(self, unused: Iterable[str] = ()) -> None:
        if unread := self.unread(unused):
            listed = ", ".join(f"{name} = {_brief(value)}" for name, value in unread.items())
            raise CheckpointError(
                f"config.json has fields that nothing reads, so the model might not be what it says: {listed}. If they "
                "do not change inference, remove them from config.json or list them as unused in the family's file"
            )


def complete(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json and those it leaves out because they equal the defaults of transformers' class.

    Old spellings (`rope_theta` and `rope_scaling` beside each other) come out as the new ones (`rope_parameters`).
    A `model_type` that transformers does not have is returned as it is.

    A field that transformers does not know, or drops, is kept: someone has to read it, or it will be refused.

    Raises:
        CheckpointError: transformers refuses a value.
    """
    from huggingface_hub.errors import StrictDataclassError

    _check_repeats(fields)
    kinds = _config_classes()
    if fields.get("model_type") not in kinds:
        return dict(fields)
    kind = kinds[fields["model_type"]]
    useful = {name: value for name, value in fields.items() if name not in NEUTRAL or name.endswith("_token_id")}
    given = copy.deepcopy(useful)  # the class writes into what it is given
    try:
        whole = kind.from_dict(given).to_dict()
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: transformers' {kind.__name__} refuses it: {error}") from error
    dropped = [name for name in useful if kind.attribute_map.get(name, name) not in whole]
    return whole | {name: useful[name] for name in dropped if not _was_moved(name, useful[name], whole)}


def _was_moved(name: str, value: Any, whole: Mapping[str, Any]) -> bool:
    """Whether `rope_parameters` now says what a field of an older file said."""
    if name not in CONVERTED or value is None:
        return name in CONVERTED
    said = value if isinstance(value, Mapping) else {CONVERTED[name]: value}
    rope = whole.get("rope_parameters") or {}
    places = [rope, *(place for place in rope.values() if isinstance(place, Mapping))]
    return any(all(place.get(key) == told for key, told in said.items()) for place in places)


def standard_names(model_type: str) -> Mapping[str, str]:
    """How the fields that transformers knows by one name in all classes are called in this class's config.json."""
    kinds = _config_classes()
    return kinds[model_type].attribute_map if model_type in kinds else {}


def _config_classes() -> Mapping[str, Any]:
    """transformers' config classes by model_type; imported without its advice to install torch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING


def _check_repeats(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            _check_repeats(value)
        elif REPEATS.fullmatch(name) and max(_whole_numbers(value), default=0) > MOST_REPEATS:
            raise CheckpointError(
                f"config.json: {name} is {_brief(value)}; no model has over {MOST_REPEATS:,} of those"
            )


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _whole_numbers(entry)
    elif isinstance(value, int):
        yield value


def _brief(value: Any, most: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"

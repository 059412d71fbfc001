"""The language model in a checkpoint of a multimodal model: its config.json, and the names of its tensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxlens.checkpoints.families import family_of
from jaxlens.checkpoints.heads import BASE, OF_HEAD, class_name, kind_of, with_head
from jaxlens.checkpoints.rules.completion import causal_model
from jaxlens.checkpoints.rules.config_helpers import head_dim
from jaxlens.checkpoints.rules.hf_config import Reader, complete, is_converted
from jaxlens.checkpoints.rules.rule import Family, Tensors, moves
from jaxlens.checkpoints.rules.wrappers import (
    INACTIVE,
    LANGUAGE_MODELS,
    LAYOUTS,
    POSITION_FIELDS,
    UNUSED_FIELDS,
    WRAPPERS,
    Wrapper,
)
from jaxlens.checkpoints.validate import same_bits
from jaxlens.config import Config
from jaxlens.nn.module import axis_lengths

QUANTIZATION = ("quantization_config", "compression_config")
"""The config.json fields that describe quantized weights. Exported weights are not quantized."""


def wrapper_of(fields: Mapping[str, Any]) -> Wrapper | None:
    """The multimodal model that a config.json describes. None if it describes a language model alone."""
    kind = fields.get("model_type")
    return WRAPPERS.get(kind) if isinstance(kind, str) else None


def language_model(wrapper: Wrapper, fields: Mapping[str, Any]) -> tuple[Family, Reader, Reader]:
    """The family of the language model, the reader of its fields, and that of all fields of a config.json.

    The family reads the language model from a checkpoint of the multimodal model, and exports it alone.
    """
    fields = _inner(wrapper, fields)
    unused, stated = UNUSED_FIELDS.union(wrapper.unused), fields.get(wrapper.text)
    twice = stated if isinstance(stated, Mapping) else {}  # some versions of transformers wrote fields twice
    given = {name: value for name, value in fields.items() if name not in unused and not _repeats(twice, name, value)}
    whole = complete(given)
    Reader(whole).inside(wrapper.text)  # raises an error unless it is an object
    completed, text = whole[wrapper.text], _text(wrapper, stated, whole)

    def belongs_to_text(name: str, value: Any) -> bool:
        if stated is None:  # the fields of the language model are beside those of the multimodal model
            return name in completed or is_converted(name, value, completed)
        return _repeats(text, name, value)

    rest = {
        name: value
        for name, value in whole.items()
        if name not in (*unused, wrapper.text, "tie_word_embeddings") and not belongs_to_text(name, value)
    }
    family = _family(wrapper, text)
    if stated is None:
        hf = Reader({**rest, **text})
        return family, hf, hf
    hf = Reader({**rest, wrapper.text: text})
    return family, hf.inside(wrapper.text), hf


def _inner(wrapper: Wrapper, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json without those of the parts that are not read, and without a field around the others.

    Raises a CheckpointError if that field is no object.
    """
    if wrapper.within is None:
        return dict(fields)
    inner = fields.get(wrapper.within) or {}
    Reader({wrapper.within: inner}).inside(wrapper.within)  # raises an error unless it is an object
    outer = {name: value for name, value in fields.items() if name not in (*wrapper.unused, wrapper.within)}
    kind = f"{fields['model_type']}_{wrapper.within.removesuffix('_config')}"
    return {**outer, **inner, "model_type": kind}


def _text(wrapper: Wrapper, stated: Mapping[str, Any] | None, whole: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that the language model would have alone."""
    text = dict(whole[wrapper.text])
    kind = text.get("model_type")
    if stated:
        text = complete({**stated, "model_type": kind})
    model_type = LANGUAGE_MODELS.get(str(kind), kind)
    family_of(model_type, f"{wrapper.text}.model_type")  # raises an error if it is not supported
    text = {
        name: value for name, value in text.items() if name not in UNUSED_FIELDS and not _repeats(INACTIVE, name, value)
    }
    if kind in LANGUAGE_MODELS and text.get("head_dim") is None:  # the family's default may be another
        text["head_dim"] = head_dim(Reader(text))
    if isinstance(rope := text.get("rope_parameters"), Mapping):
        text["rope_parameters"] = {name: value for name, value in rope.items() if name not in POSITION_FIELDS}
    tied = Reader(whole).flag("tie_word_embeddings") or Reader(text).flag("tie_word_embeddings")
    text = complete({**text, "model_type": model_type, "tie_word_embeddings": tied})
    text |= {name: value for name, value in wrapper.fixed.items() if name in text}
    return text | {"architectures": causal_model({"model_type": model_type})}


def _repeats(others: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether `others` contains a field with the same value. Both are needed to tell whether embeddings are tied."""
    return name != "tie_word_embeddings" and name in others and others[name] == value


def _family(wrapper: Wrapper, text: dict[str, Any]) -> Family:
    family, alone = family_of(text["model_type"]), {name: text[name] for name in text if name not in QUANTIZATION}
    other_parts = [pattern for patterns in wrapper.unread_tensors.values() for pattern in patterns]
    return dataclasses.replace(
        family, rules=(*wrapper.rules, family.rules)[0], ignored=(*family.ignored, *other_parts), layouts=LAYOUTS,
        source=lambda _: family.source(alone),
    )  # fmt: skip


def as_stored(
    wrapper: Wrapper, fields: Mapping[str, Any], family: Family, cfg: Config, tensors: Tensors
) -> tuple[Family, Config]:
    """The family and the config of the language model, adapted to the class that config.json names and to the tensors.

    As in transformers, embeddings are not tied if a head is stored that differs from them. config.json alone does not
    tell, because the default of `tie_word_embeddings` changed between versions of transformers. The head of a
    multimodal model has no bias, even if that of its language model alone has one.
    """
    names, lengths = set(tensors.names()), axis_lengths(cfg)
    for rules in wrapper.rules:
        plan = moves(rules(cfg), cfg, family.spelling(rules(cfg), names))
        stored = [move for move in plan if move.theirs in names]
        if all(tensors.shape(move.theirs) == move.rule.their_shape(lengths) for move in stored):
            family = dataclasses.replace(family, rules=rules)
            break
    rules = list(family.rules(cfg))
    rename = family.spelling(rules, names)
    heads = [(rename(copy), rename(original)) for copy, original in family.copies if cfg.tie_word_embeddings]
    if any(names.issuperset(pair) and not same_bits(*map(tensors.read, pair)) for pair in heads):
        cfg = cfg.replace(tie_word_embeddings=False)
    if any("unembed.b_U" in rule.targets and rename(rule.theirs) not in names for rule in rules):
        cfg = cfg.replace(biases=tuple(bias for bias in cfg.biases if bias != "b_U"))
    stored = any(rename(rule.theirs) in names for rule in rules if OF_HEAD & {*rule.targets})
    return (family, cfg) if stored or kind_of(fields) != BASE else _base_model(fields, family, cfg)


def _base_model(fields: Mapping[str, Any], family: Family, cfg: Config) -> tuple[Family, Config]:
    """The family and the config of a language model without its head. If embeddings are tied, there is one."""
    headless, changed = with_head(family, cfg, fields)
    if headless is family:
        return family, cfg
    alone = dict(family.source(fields))
    alone["architectures"] = [class_name(alone, BASE)]
    return dataclasses.replace(headless, source=lambda _: alone), changed

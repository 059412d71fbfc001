"""The heads of checkpoints besides that of a language model: none (a base model), or a classifier of labels.

transformers writes the kind of a model as the name of its class in `architectures`: `LlamaModel`,
`LlamaForSequenceClassification`. The class determines the name of the head's tensors, and the prefix of all others. A
checkpoint without this field, or with a wrong one, is recognized by its tensors.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxlens.checkpoints.rules.rule import Family, Rule, Tensors
from jaxlens.config import Config
from jaxlens.errors import CheckpointError

CAUSAL_LM, BASE = "ForCausalLM", "Model"
CLASSIFIERS = {
    "ForSequenceClassification": ("sequence_labels", "score"), "ForTokenClassification": ("token_labels", "score"),
    "ForQuestionAnswering": ("token_labels", "qa_outputs"),
}  # fmt: skip
"""The end of the class's name: `Config.output_head`, and the name of the head."""

OF_HEAD = frozenset(("unembed.W_U", "unembed.b_U"))
"""The parameters of a head."""

NO_LM_HEAD = {"tie_word_embeddings": False, "output_logits_scale": 1.0, "output_logits_soft_cap": None}
"""The fields of a Config that only the head of a language model has."""

LABELS = frozenset(("id2label", "num_labels", "_num_labels"))
"""The config.json fields with the number of labels."""

OLDER_TOKEN_HEAD = frozenset(
    ("biogpt", "bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "mpt")
)  # fmt: skip
"""The model_types whose head for token classification is called `classifier`."""

UNDER_TRANSFORMER = frozenset(
    ("arcee", "exaone4", "llama", "ministral", "nemotron", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "smollm3")
)  # fmt: skip
"""The model_types whose tensors begin with `transformer.`, not `model.`, in a model for question answering."""

PREFIXES = ("", "model.", "transformer.")
"""The prefixes that a base model or a classifier may have instead of that of its family."""


def kind_of(fields: Mapping[str, Any]) -> str:
    """The end of the class's name in `architectures`: `BASE`, a key of `CLASSIFIERS`, or `CAUSAL_LM` for all others."""
    named = fields.get("architectures")
    name = named[0] if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else ""
    if name.endswith(BASE) and not name.endswith(("HeadModel", "HeadsModel")):
        return BASE
    return next((kind for kind in CLASSIFIERS if name.endswith(kind)), CAUSAL_LM)


def with_head(family: Family, cfg: Config, fields: Mapping[str, Any]) -> tuple[Family, Config]:
    """The family and the Config of a language model, changed to those of the class that config.json names."""
    kind = kind_of(fields)
    is_whole = kind == BASE and cfg.tie_word_embeddings and "b_U" not in cfg.biases  # the embedding is the head
    if kind == CAUSAL_LM or is_whole or not family.prefixes[0]:
        return family, cfg
    biases = tuple(bias for bias in cfg.biases if bias != "b_U")
    if kind == BASE:
        return _with_rules(family, "", ()), cfg.replace(**NO_LM_HEAD, output_head=None, biases=biases)
    output, head = CLASSIFIERS[kind][0], head_name(kind, fields.get("model_type"))
    has_bias = kind != "ForSequenceClassification"
    rules = [Rule(f"{head}.weight", "unembed.W_U", "o w -> w o")]
    rules += [Rule(f"{head}.bias", "unembed.b_U", "o")] if has_bias else []
    moved = kind == "ForQuestionAnswering" and fields.get("model_type") in UNDER_TRANSFORMER
    cfg = cfg.replace(
        **NO_LM_HEAD, output_head=output, d_vocab_out=n_labels(kind, fields),
        biases=(*biases, "b_U") if has_bias else biases,
    )  # fmt: skip
    return _with_rules(family, "transformer." if moved else family.prefixes[0], rules), cfg


def class_name(fields: Mapping[str, Any], kind: str) -> str:
    """The name of another class of the same model: of that in `architectures`, with another end."""
    stem = re.sub(r"(For\w+|(LMHead|DoubleHeads)?Model)$", "", str((fields.get("architectures") or [""])[0]))
    return (stem or "".join(part.title() for part in re.split(r"[-_]", fields["model_type"]))) + kind


def head_name(kind: str, model_type: Any) -> str:
    """The name of a classifier's head, such as `score`."""
    older = kind == "ForTokenClassification" and model_type in OLDER_TOKEN_HEAD
    return "classifier" if older else CLASSIFIERS[kind][1]


def n_labels(kind: str, fields: Mapping[str, Any]) -> int:
    """The number of labels in config.json, which transformers writes unless it is 2."""
    if kind == "ForQuestionAnswering":
        return 2  # the start and the end of the answer
    labels = fields.get("id2label")
    number = len(labels) if isinstance(labels, Mapping | list) else fields.get("num_labels", fields.get("_num_labels"))
    if isinstance(number, bool) or not isinstance(number, int | None) or number == 0:
        raise CheckpointError(f"config.json: num_labels is {number!r}; expected a positive integer")
    return 2 if number is None else number


def recognized(fields: dict[str, Any], family: Family, cfg: Config, tensors: Tensors) -> dict[str, Any]:
    """config.json with the class in `architectures` that the tensors show, if they contradict the one that it names.

    `cfg` is the Config of a language model.
    """
    names, kind = set(tensors.names()), kind_of(fields)
    if not family.prefixes[0]:
        return fields
    shown = _shown(fields, family, cfg, names)
    if shown == kind or shown is None:
        return fields
    if shown == CAUSAL_LM:
        return {name: value for name, value in fields.items() if name != "architectures"}
    fields = {**fields, "architectures": [class_name(fields, shown)]}
    if shown in CLASSIFIERS and not LABELS & fields.keys():
        number = tensors.shape(f"{head_name(shown, fields['model_type'])}.weight")[0]
        fields["id2label"] = {str(label): f"LABEL_{label}" for label in range(number)}
    return fields


def _shown(fields: Mapping[str, Any], family: Family, cfg: Config, names: set[str]) -> str | None:
    """The kind of a model by its tensors. None if they show none."""
    kind, model_type = kind_of(fields), fields.get("model_type")
    if kind in CLASSIFIERS and f"{head_name(kind, model_type)}.weight" in names:
        return kind
    if "score.weight" in names:
        return "ForTokenClassification" if "score.bias" in names else "ForSequenceClassification"
    if "classifier.weight" in names and model_type in OLDER_TOKEN_HEAD:
        return "ForTokenClassification"
    if "qa_outputs.weight" in names:
        return "ForQuestionAnswering"
    rules = list(family.rules(cfg))
    rename = family.spelling(rules, names)
    heads = [rename(rule.theirs) in names for rule in rules if OF_HEAD & {*rule.targets}]
    if any(heads) or (cfg.tie_word_embeddings and not heads):
        return CAUSAL_LM if kind == BASE else None
    prefixed = any(name.startswith(family.prefixes[0]) for name in names)
    return None if prefixed else BASE


def _with_rules(family: Family, prefix: str, head: Iterable[Rule]) -> Family:
    """The family with another prefix of all tensors, and other rules for the head."""

    def rules(cfg: Config) -> Iterator[Rule]:
        for rule in family.rules(cfg):
            if not OF_HEAD & {*rule.targets}:
                yield rule
        yield from head

    return dataclasses.replace(
        family, rules=rules, copies=(), written=prefix, prefixes=tuple(dict.fromkeys((*family.prefixes, *PREFIXES))),
    )  # fmt: skip

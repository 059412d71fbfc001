"""TransformerLens's config fields: converts them to a Config, and reads them from any Config.

Several fields of TransformerLens (`use_local_attn`, `window_size`, `attn_types`) can correspond to a single field of
Config (`windows`). Fields without a meaning in JAX (`device`) are accepted and ignored. Fields of features that jaxlens
does not have must be off.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxlens.config import Config, Linear, Llama3, Rotary, Yarn
from jaxlens.config.config import from_json
from jaxlens.hooks.table import SWITCHES
from jaxlens.transformer_lens.absent import no_attribute

FIXED: dict[str, Any] = {
    "attention_dir": "causal", "decoder_start_token_id": None, "load_in_4bit": False, "n_devices": 1,
    "relative_attention_max_distance": None, "relative_attention_num_buckets": None,
}  # fmt: skip
"""The fields of features that jaxlens does not have, and the only value that each accepts."""

MEANINGLESS: dict[str, Any] = {
    "init_weights": True, "original_architecture": None, "tokenizer_prepends_bos": None, "trust_remote_code": False,
    "ungroup_grouped_query_attention": False,
}  # fmt: skip
"""Fields without an effect in jaxlens. Any value is accepted and ignored. Reading the field gives this value."""

UNSET = {
    "attn_scale": -1.0, "attn_scores_soft_cap": -1.0, "d_vocab_out": -1, "initializer_range": -1.0, "n_heads": -1,
    "output_logits_soft_cap": -1.0,
}  # fmt: skip
"""The values that mean "unset" in TransformerLens. A Config uses None."""

ROTARY: dict[str, Any] = {
    "rotary_adjacent_pairs": False, "rotary_base": 10000, "rotary_base_local": None, "rotary_dim": None,
    "rotary_scaling_factor": 1.0,
    "use_NTK_by_parts_rope": False, "NTK_by_parts_factor": 8.0, "NTK_by_parts_high_freq_factor": 4.0,
    "NTK_by_parts_low_freq_factor": 1.0, "NTK_original_ctx_len": 8192,
    "use_yarn_rope": False, "yarn_attention_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
    "yarn_factor": 1.0, "yarn_original_max_position_embeddings": 4096,
}  # fmt: skip
"""The fields of rotary positions and their defaults."""

OTHERS = (
    "attn_types", "device", "from_checkpoint", "layer_norm_folding", "n_params", "use_attn_scale", "use_local_attn",
    "use_normalization_before_and_after", "use_qk_norm", "uses_rms_norm", "window_size", *SWITCHES,
)  # fmt: skip
"""Other fields of TransformerLens that a Config does not have under the same name."""


class _AnyConfig(type):
    """Makes every Config an instance of HookedTransformerConfig, because every Config has TransformerLens's fields."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Config)


class HookedTransformerConfig(Config, metaclass=_AnyConfig):
    """A Config made from the fields of TransformerLens, of Config, or of both.

    Like every Config, it is frozen. `replace` returns a changed copy. Without `d_vocab`, the vocabulary is that of the
    tokenizer with which a HookedTransformer is made, and `d_vocab` is -1 until then.

    Example:
        >>> cfg = HookedTransformerConfig(
        ...     n_layers=2, d_model=16, d_head=4, d_vocab=50, n_ctx=8, act_fn="gelu_new", use_local_attn=True,
        ...     window_size=3, attn_types=["global", "local"], device="cpu", seed=7)
        >>> cfg.n_heads, cfg.windows, cfg.attn_types, cfg.n_params, cfg.use_attn_result
        (4, (None, 3), ['global', 'local'], 6144, False)

    Raises:
        ValueError: A field is unknown, enables a feature that jaxlens does not have, or has an invalid value.
    """

    def __init__(self, **fields: Any):
        known = _config_fields(from_json(fields))
        if known.setdefault("d_vocab", -1) != -1:
            super().__init__(**known)
            return
        super().__init__(**known | {"d_vocab": 1})
        for name in {"d_vocab", "d_vocab_out"}.intersection(["d_vocab", *self._derived]):
            object.__setattr__(self, name, -1)

    @classmethod
    def unwrap(cls, config: Config | Mapping[str, Any]) -> Config:
        """Returns a Config unchanged, and converts a dict of fields to a Config."""
        return config if isinstance(config, Config) else cls(**config)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Config:
        """Converts a dict to a Config. The dict contains fields of TransformerLens, or is the result of `to_dict`."""
        return cls(**fields)


TransformerLensConfig = HookedTransformerConfig
"""TransformerLens's base class of configs, which takes the same fields."""


def __getattr__(name: str) -> Any:
    raise no_attribute(f"config.{name}")


def read_field(cfg: Config, name: str) -> Any:
    """The value of a field that only TransformerLens has, computed from a Config."""
    if name not in READ:
        raise AttributeError(f"Config has no field {name!r}")
    return READ[name](cfg)


def with_field(cfg: Config, name: str, value: Any) -> Config:
    """A copy of a config in which a field of Config or of TransformerLens has another value."""
    if name in (field.name for field in dataclasses.fields(Config)):
        return cfg.replace(**{name: value})
    if name in SWITCHES:
        sites = cfg.switched_on.difference(SWITCHES[name]).union(SWITCHES[name] if value else ())
        return cfg.replace(switched_on=sites)
    if name in MEANINGLESS or read_field(cfg, name) == value:
        return cfg
    if name == "device":
        raise ValueError("device cannot be assigned; use model.to(device)")
    made = f"make a config with HookedTransformerConfig({name}=..., ...)"
    raise ValueError(f"{name}={value!r} cannot be assigned, because other fields say it; {made}")


# --- from TransformerLens's fields to Config's


def _config_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Converts TransformerLens's fields to those of Config. Fields that Config also has are kept."""
    given = {name: value for name, value in fields.items() if name not in UNSET or value != UNSET[name]}
    known = {field.name for field in dataclasses.fields(Config)} | {*FIXED, *MEANINGLESS, *ROTARY, *OTHERS}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"neither Config nor TransformerLens has a field {unknown}; the fields are {sorted(known)}")
    take = lambda name, default: given.pop(name, default)  # noqa: E731
    for name, value in FIXED.items():
        if (given_value := take(name, value)) != value:
            raise ValueError(f"{name}={given_value!r} is not supported; omit it, or pass {value!r}")
    for name in (*MEANINGLESS, "device", "from_checkpoint", "layer_norm_folding", "n_params", "uses_rms_norm"):
        take(name, None)
    given["final_rms"] = take("final_rms", False) or None  # TransformerLens ignores False in models with RMSNorm
    if not take("use_attn_scale", True):
        given["attn_scale"] = 1.0
    if take("use_normalization_before_and_after", False):
        given["norm_placement"] = "both"
    if take("use_qk_norm", False):
        given["qk_norm"] = "head"
    if given.get("num_experts") is not None and "moe_layers" not in given:
        given.setdefault("norm_topk_prob", False)  # TransformerLens's default
    if given.get("attn_only"):
        given.pop("act_fn", None)
    on = [site for switch, sites in SWITCHES.items() if take(switch, False) for site in sites]
    given["switched_on"] = frozenset(given.get("switched_on", ())) | frozenset(on)
    _add_n_heads(given)
    _add_windows(given)
    _add_rotary(given)
    return given


def _add_n_heads(fields: dict[str, Any]) -> None:
    if "n_heads" in fields or not {"d_model", "d_head"} <= fields.keys():
        return
    if fields["d_model"] % fields["d_head"]:
        raise ValueError(f"n_heads is missing, and d_head = {fields['d_head']} does not divide d_model; pass n_heads")
    fields["n_heads"] = fields["d_model"] // fields["d_head"]


def _add_windows(fields: dict[str, Any]) -> None:
    """Replaces TransformerLens's fields of local attention with `windows`."""
    local, window, types = (fields.pop(name, None) for name in ("use_local_attn", "window_size", "attn_types"))
    if not local:
        return
    if window is None or types is None:
        raise ValueError("use_local_attn needs window_size and attn_types; pass e.g. 256 and ['global', 'local']")
    fields["windows"] = tuple(window if kind == "local" else None for kind in types)


def _add_rotary(fields: dict[str, Any]) -> None:
    """Replaces TransformerLens's fields of rotary positions with `rotary`."""
    values = ROTARY | {name: fields.pop(name) for name in ROTARY if name in fields}
    if fields.get("positional_embedding_type") != "rotary" or fields.get("rotary"):
        return
    scaling = _scaling(values)
    rotary = Rotary(values["rotary_base"], values["rotary_dim"], values["rotary_adjacent_pairs"], scaling)
    local = rotary
    if values["rotary_base_local"] is not None:
        local = dataclasses.replace(rotary, base=values["rotary_base_local"], scaling=None)
    windows = fields.get("windows") or (None,) * fields["n_layers"]
    fields["rotary"] = tuple(rotary if window is None else local for window in windows)


def _scaling(fields: Mapping[str, Any]) -> Linear | Llama3 | Yarn | None:
    if fields["use_NTK_by_parts_rope"]:
        low, high = fields["NTK_by_parts_low_freq_factor"], fields["NTK_by_parts_high_freq_factor"]
        return Llama3(fields["NTK_by_parts_factor"], low, high, fields["NTK_original_ctx_len"])
    if fields["use_yarn_rope"]:
        names = ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow")
        return Yarn(*(fields[f"yarn_{name}"] for name in names))
    return Linear(fields["rotary_scaling_factor"]) if fields["rotary_scaling_factor"] != 1.0 else None


# --- from a Config to TransformerLens's fields


def _n_params(cfg: Config) -> int:
    """The number of weights in attention and MLP matrices, as Kaplan et al. 2020 (arXiv 2001.08361) count them."""
    attention = 4 * cfg.d_model * cfg.d_head * cfg.n_heads
    mlp = 0 if cfg.attn_only else cfg.d_model * cfg.d_mlp * (2 + cfg.gated_mlp)
    return cfg.n_layers * (attention + ((mlp + cfg.d_model) * cfg.num_experts if cfg.num_experts else mlp))


def _rotary_of(cfg: Config, local: bool = False) -> Rotary | None:
    """The rotary positions of the first global layer, or with `local` of the first local layer."""
    pairs = zip(cfg.rotary, cfg.windows, strict=False)
    return next((rotary for rotary, window in pairs if rotary and (window is not None) == local), None)


def _rotary_field(name: str, cfg: Config) -> Any:
    rotary, local = _rotary_of(cfg) or _rotary_of(cfg, local=True), _rotary_of(cfg, local=True)
    if rotary is None:
        return ROTARY[name]
    scaling = rotary.scaling
    fields = ROTARY | {"rotary_base": rotary.base, "rotary_adjacent_pairs": rotary.adjacent_pairs}
    if local and local.base != rotary.base:
        fields |= {"rotary_base_local": local.base}
    if isinstance(scaling, Linear):
        fields |= {"rotary_scaling_factor": scaling.factor}
    if isinstance(scaling, Llama3):
        fields |= {
            "use_NTK_by_parts_rope": True, "NTK_by_parts_factor": scaling.factor,
            "NTK_by_parts_low_freq_factor": scaling.low_freq_factor,
            "NTK_by_parts_high_freq_factor": scaling.high_freq_factor, "NTK_original_ctx_len": scaling.original_n_ctx,
        }  # fmt: skip
    if isinstance(scaling, Yarn):
        fields |= {
            "use_yarn_rope": True, "yarn_factor": scaling.factor, "yarn_attention_factor": scaling.attention_factor,
            "yarn_beta_fast": scaling.beta_fast, "yarn_beta_slow": scaling.beta_slow,
            "yarn_original_max_position_embeddings": scaling.original_n_ctx,
        }  # fmt: skip
    return fields[name]


def _constant(value: Any, cfg: Config) -> Any:
    return value


def _is_on(switch: str, cfg: Config) -> bool:
    return cfg.switched_on.issuperset(SWITCHES[switch])


def _is_rms(cfg: Config) -> bool:
    return (cfg.normalization_type or "").startswith("RMS")


def _set_seed_everywhere(seed: int) -> None:
    """Seeds Python's and NumPy's random numbers. JAX's come from keys, and weights from `cfg.seed`."""
    random.seed(seed)
    np.random.seed(seed)


READ: dict[str, Callable[[Config], Any]] = {
    **{name: functools.partial(_constant, value) for name, value in (FIXED | MEANINGLESS).items()},
    **{name: functools.partial(_rotary_field, name) for name in ROTARY if name != "rotary_dim"},
    **{switch: functools.partial(_is_on, switch) for switch in SWITCHES},
    "attn_types": lambda cfg: ["global" if w is None else "local" for w in cfg.windows] if any(cfg.windows) else None,
    "device": lambda cfg: cfg.weights_on or jax.config.jax_default_device or jax.devices()[0],
    "from_checkpoint": lambda cfg: cfg.checkpoint_value is not None,
    "is_layer_norm_activation": lambda cfg: lambda: cfg.act_fn.endswith("_ln"),
    "set_seed_everywhere": lambda cfg: _set_seed_everywhere,
    "layer_norm_folding": lambda cfg: (cfg.normalization_type or "").endswith("Pre"), "n_params": _n_params,
    "use_attn_scale": lambda cfg: cfg.attn_scale != 1.0, "use_local_attn": lambda cfg: any(cfg.windows),
    "use_normalization_before_and_after": lambda cfg: cfg.norm_placement == "both",
    "use_qk_norm": lambda cfg: cfg.qk_norm is not None, "uses_rms_norm": _is_rms,
    "window_size": lambda cfg: next(filter(None, cfg.windows), None),
}  # fmt: skip

"""TransformerLens's config: its fields make a Config, and every model's config answers to them.

What TransformerLens says by several fields (`use_local_attn`, `window_size`, `attn_types`) a Config says by one
(`windows`). A field of TransformerLens is translated, or has no meaning in JAX and is accepted (`device`,
`use_attn_result`), or asks for what jaxlens does not do and is an error unless it is off.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxlens.config import Config, Linear, Llama3, Rotary, Yarn

FIXED: dict[str, Any] = {
    "attention_dir": "causal", "decoder_start_token_id": None, "load_in_4bit": False, "n_devices": 1,
    "relative_attention_max_distance": None, "relative_attention_num_buckets": None, "use_hook_tokens": False,
}  # fmt: skip
"""What jaxlens does not do: such a field has this value."""

MEANINGLESS: dict[str, Any] = {
    "checkpoint_index": None, "checkpoint_label_type": None, "checkpoint_value": None, "from_checkpoint": False,
    "init_weights": True, "original_architecture": None, "tokenizer_prepends_bos": None, "trust_remote_code": False,
    "ungroup_grouped_query_attention": False,
}  # fmt: skip
"""What makes no difference here: such a field may be given any value, and is read as this one."""

UNSET = {
    "attn_scale": -1.0, "attn_scores_soft_cap": -1.0, "d_vocab_out": -1, "initializer_range": -1.0, "n_heads": -1,
    "output_logits_soft_cap": -1.0,
}  # fmt: skip
"""How TransformerLens says of a number that it is to follow from others, where a Config says None."""

ROTARY: dict[str, Any] = {
    "rotary_adjacent_pairs": False, "rotary_base": 10000, "rotary_base_local": None, "rotary_dim": None,
    "rotary_scaling_factor": 1.0,
    "use_NTK_by_parts_rope": False, "NTK_by_parts_factor": 8.0, "NTK_by_parts_high_freq_factor": 4.0,
    "NTK_by_parts_low_freq_factor": 1.0, "NTK_original_ctx_len": 8192,
    "use_yarn_rope": False, "yarn_attention_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
    "yarn_factor": 1.0, "yarn_original_max_position_embeddings": 4096,
}  # fmt: skip
"""The fields that make up the rotary positions of a layer, and their defaults."""

OTHERS = (
    "attn_types", "device", "final_rms", "layer_norm_folding", "n_params", "use_attn_scale", "use_local_attn",
    "use_normalization_before_and_after", "use_qk_norm", "uses_rms_norm", "window_size",
)  # fmt: skip
"""The further fields of TransformerLens that a Config has no field of the same name for."""

SWITCHES = {
    "use_attn_result": ("attn.hook_result",), "use_attn_in": ("hook_attn_in",), "use_hook_mlp_in": ("hook_mlp_in",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
}  # fmt: skip
"""The hook points that each switch puts into every cache; asked for, they are there without it."""

OWN = ("model_name", "seed", "tokenizer_name", *SWITCHES)


@dataclasses.dataclass(frozen=True, init=False, repr=False, eq=False)
class HookedTransformerConfig(Config):
    """A Config made from TransformerLens's fields, Config's own, or both; every model's `cfg` is one.

    TransformerLens's fields can be read from it by name. `model_name`, `seed` (of the first weights), `tokenizer_name`
    (which a model made from it loads) and the switches belong to it alone: it equals any Config that is otherwise the
    same. Like every Config it is frozen; `replace` makes another.

    Example:
        >>> cfg = HookedTransformerConfig(
        ...     n_layers=2, d_model=16, d_head=4, d_vocab=50, n_ctx=8, act_fn="gelu_new", use_local_attn=True,
        ...     window_size=3, attn_types=["global", "local"], device="cpu", seed=7)
        >>> cfg.n_heads, cfg.windows, cfg.attn_types, cfg.n_params, cfg.use_attn_result
        (4, (None, 3), ['global', 'local'], 6144, False)

    Raises:
        ValueError: a field is in neither, asks for what jaxlens does not do, or has a value that it cannot have.
    """

    model_name: str = "custom"
    seed: int | None = None
    tokenizer_name: str | None = None
    use_attn_result: bool = False
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False

    def __init__(self, **fields: Any):
        own = {name: fields.pop(name) for name in OWN if name in fields}
        self.__dict__.update(Config.from_dict(translated(fields)).__dict__)
        self.__dict__.update(own)

    @classmethod
    def unwrap(cls, config: Config | Mapping[str, Any], **own: Any) -> "HookedTransformerConfig":
        """A config from another or from a dict of fields; of `own` (model_name, seed) what is not None replaces its."""
        own = {name: value for name, value in own.items() if value is not None}
        if isinstance(config, cls):
            return dataclasses.replace(config, **own) if own else config
        fields = config.to_dict() if isinstance(config, Config) else config
        return cls(**{**fields, **own})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "HookedTransformerConfig":
        """A config from a dict of fields, TransformerLens's or those that `to_dict` gives."""
        return cls(**fields)

    def __getattr__(self, name: str) -> Any:
        if name in READ:
            return READ[name](self)
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    @functools.cached_property
    def switched_on(self) -> frozenset[str]:
        """The hook points on request that every cache is to hold."""
        return frozenset(site for switch, sites in SWITCHES.items() if getattr(self, switch) for site in sites)

    def is_layer_norm_activation(self) -> bool:
        """Whether the MLP normalises after its activation function."""
        return self.act_fn.endswith("_ln")


# --- TransformerLens's fields into Config's


def translated(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Config's fields from TransformerLens's; those that are Config's already stay as they are.

    Raises:
        ValueError: as for HookedTransformerConfig.
    """
    given = {name: value for name, value in fields.items() if name not in UNSET or value != UNSET[name]}
    known = {field.name for field in dataclasses.fields(Config)} | {*FIXED, *MEANINGLESS, *ROTARY, *OTHERS, *OWN}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"there is no field {unknown} in a Config or in TransformerLens's; there are {sorted(known)}")
    take = lambda name, default: given.pop(name, default)  # noqa: E731
    for name, value in FIXED.items():
        if (asked := take(name, value)) != value:
            raise ValueError(f"{name} is {asked!r}, which jaxlens does not do; it must be {value!r} or left out")
    for name in (*MEANINGLESS, "device", "layer_norm_folding", "n_params", "uses_rms_norm"):
        take(name, None)
    _check_norm(take("final_rms", False), given.get("normalization_type", "LN"))
    if given.get("d_vocab", -1) == -1:
        raise ValueError("d_vocab is missing: it is not read off a tokenizer; give d_vocab=len(tokenizer)")
    if not take("use_attn_scale", True):
        given["attn_scale"] = 1.0
    if take("use_normalization_before_and_after", False):
        given["norm_placement"] = "both"
    if take("use_qk_norm", False):
        given["qk_norm"] = "head"
    if given.get("num_experts") is not None and "moe_layers" not in given:
        given.setdefault("norm_topk_prob", False)  # the default there
    if given.get("attn_only"):
        given.pop("act_fn", None)
    _add_n_heads(given)
    _add_windows(given)
    _add_rotary(given)
    return given


def _check_norm(final_rms: bool, kind: str | None) -> None:
    if final_rms and not (kind or "").startswith("RMS"):
        raise ValueError(f"final_rms needs RMSNorm everywhere; normalization_type is {kind!r}")


def _add_n_heads(fields: dict[str, Any]) -> None:
    if "n_heads" in fields or not {"d_model", "d_head"} <= fields.keys():
        return
    if fields["d_model"] % fields["d_head"]:
        raise ValueError(f"n_heads is missing, and d_head = {fields['d_head']} does not divide d_model; give n_heads")
    fields["n_heads"] = fields["d_model"] // fields["d_head"]


def _add_windows(fields: dict[str, Any]) -> None:
    """What each layer sees."""
    local, window, types = (fields.pop(name, None) for name in ("use_local_attn", "window_size", "attn_types"))
    if not local:
        return
    if window is None or types is None:
        raise ValueError("use_local_attn needs window_size and attn_types, e.g. 256 and ['global', 'local']")
    fields["windows"] = tuple(window if kind == "local" else None for kind in types)


def _add_rotary(fields: dict[str, Any]) -> None:
    """How each layer turns its queries and keys."""
    of = ROTARY | {name: fields.pop(name) for name in ROTARY if name in fields}
    if fields.get("positional_embedding_type") != "rotary" or fields.get("rotary"):
        return
    everywhere = Rotary(of["rotary_base"], of["rotary_dim"], of["rotary_adjacent_pairs"], _scaling(of))
    local = everywhere
    if of["rotary_base_local"] is not None:
        local = dataclasses.replace(everywhere, base=of["rotary_base_local"], scaling=None)
    windows = fields.get("windows") or (None,) * fields["n_layers"]
    fields["rotary"] = tuple(everywhere if window is None else local for window in windows)


def _scaling(of: Mapping[str, Any]) -> Linear | Llama3 | Yarn | None:
    if of["use_NTK_by_parts_rope"]:
        low, high = of["NTK_by_parts_low_freq_factor"], of["NTK_by_parts_high_freq_factor"]
        return Llama3(of["NTK_by_parts_factor"], low, high, of["NTK_original_ctx_len"])
    if of["use_yarn_rope"]:
        original, ramp = of["yarn_original_max_position_embeddings"], (of["yarn_beta_fast"], of["yarn_beta_slow"])
        return Yarn(of["yarn_factor"], original, of["yarn_attention_factor"], *ramp)
    return Linear(of["rotary_scaling_factor"]) if of["rotary_scaling_factor"] != 1.0 else None


# --- TransformerLens's fields read off a Config


def _n_params(cfg: Config) -> int:
    """The weights of attention and MLPs, as Kaplan et al. 2020 (arXiv 2001.08361) count them: matrices only."""
    attention = 4 * cfg.d_model * cfg.d_head * cfg.n_heads
    mlp = 0 if cfg.attn_only else cfg.d_model * cfg.d_mlp * (2 + cfg.gated_mlp)
    return cfg.n_layers * (attention + ((mlp + cfg.d_model) * cfg.num_experts if cfg.num_experts else mlp))


def _turning(cfg: Config, local: bool = False) -> Rotary | None:
    """The rotary positions of a layer that sees everything, or of one that does not."""
    pairs = zip(cfg.rotary, cfg.windows, strict=False)
    found = [rotary for rotary, window in pairs if rotary and (window is not None) == local]
    return found[0] if found else None


def _rotary_field(name: str, cfg: Config) -> Any:
    rotary, local = _turning(cfg) or _turning(cfg, local=True), _turning(cfg, local=True)
    if rotary is None:
        return ROTARY[name]
    scaling = rotary.scaling
    found = ROTARY | {"rotary_base": rotary.base, "rotary_adjacent_pairs": rotary.adjacent_pairs}
    if local and local.base != rotary.base:
        found |= {"rotary_base_local": local.base}
    if isinstance(scaling, Linear):
        found |= {"rotary_scaling_factor": scaling.factor}
    if isinstance(scaling, Llama3):
        found |= {
            "use_NTK_by_parts_rope": True, "NTK_by_parts_factor": scaling.factor,
            "NTK_by_parts_low_freq_factor": scaling.low_freq_factor,
            "NTK_by_parts_high_freq_factor": scaling.high_freq_factor, "NTK_original_ctx_len": scaling.original_n_ctx,
        }  # fmt: skip
    if isinstance(scaling, Yarn):
        found |= {
            "use_yarn_rope": True, "yarn_factor": scaling.factor, "yarn_attention_factor": scaling.attention_factor,
            "yarn_beta_fast": scaling.beta_fast, "yarn_beta_slow": scaling.beta_slow,
            "yarn_original_max_position_embeddings": scaling.original_n_ctx,
        }  # fmt: skip
    return found[name]


def _constant(value: Any, cfg: Config) -> Any:
    return value


READ: dict[str, Callable[[Config], Any]] = {
    **{name: functools.partial(_constant, value) for name, value in (FIXED | MEANINGLESS).items()},
    **{name: functools.partial(_rotary_field, name) for name in ROTARY if name != "rotary_dim"},
    "attn_types": lambda cfg: ["global" if w is None else "local" for w in cfg.windows] if any(cfg.windows) else None,
    "device": lambda cfg: jax.config.jax_default_device or jax.devices()[0],
    "final_rms": lambda cfg: (cfg.normalization_type or "").startswith("RMS"),
    "layer_norm_folding": lambda cfg: (cfg.normalization_type or "").endswith("Pre"),
    "n_params": _n_params,
    "use_attn_scale": lambda cfg: cfg.attn_scale != 1.0,
    "use_local_attn": lambda cfg: any(cfg.windows),
    "use_normalization_before_and_after": lambda cfg: cfg.norm_placement == "both",
    "use_qk_norm": lambda cfg: cfg.qk_norm is not None,
    "uses_rms_norm": lambda cfg: (cfg.normalization_type or "").startswith("RMS"),
    "window_size": lambda cfg: next(filter(None, cfg.windows), None),
}

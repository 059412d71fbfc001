"""What can vary between transformers: one frozen, validated record in which every field changes the model.

The names are TransformerLens's wherever it has one. What differs between layers is a tuple with one entry per layer;
a single value given for such a field means that value in every layer.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

from jaxlens import config_checks as check
from jaxlens.config_checks import ACTIVATIONS, BIASES, DTYPES, INIT_MODES
from jaxlens.rotary import (
    Dynamic,
    Linear,
    Llama3,
    LongRope,
    Rotary,
    Scaling,
    Yarn,
    rotary_from_dict,
    rotary_to_dict,
)

__all__ = [
    "ACTIVATIONS", "BIASES", "DTYPES", "INIT_MODES", "WHOLE_PAST", "Config", "Dynamic", "Linear", "Llama3", "LongRope",
    "Rotary", "Scaling", "Yarn",
]  # fmt: skip

WHOLE_PAST = 2**30
"""The window of a layer that sees the whole past: wider than any sequence, so that global is not a special case."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Config:
    """The shape and the arithmetic of one transformer.

    Example:
        >>> cfg = Config(n_layers=2, d_model=12, n_heads=3, d_head=5, d_vocab=50, n_ctx=16, windows=(None, 4))
        >>> cfg.d_mlp, cfg.n_key_value_heads, cfg.windows
        (48, 3, (None, 4))

    Raises:
        ValueError: naming the field, what it was, and what it may be.
    """

    # sizes
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_vocab: int
    n_ctx: int
    n_key_value_heads: int | None = None  # None: one per query head
    d_mlp: int | None = None  # None: 4 * d_model
    d_vocab_out: int | None = None  # None: d_vocab

    # the block
    attn_only: bool = False
    parallel_attn_mlp: bool = False  # attention and MLP read the same residual
    shared_norm: bool = False  # in a parallel block: one norm feeds both
    normalization_type: Literal["LN", "LNPre", "RMS", "RMSPre"] | None = "LN"
    norm_placement: Literal["pre", "post", "both", "sum"] = "pre"  # before a sublayer, after it, both, after adding it
    rmsnorm_uses_offset: bool = False  # the weight of every norm, of a LayerNorm too, is 1 + w
    eps: float = 1e-5
    residual_scale: float = 1.0  # what attention and MLP add is multiplied by it
    biases: tuple[str, ...] = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "norm", "b_U")

    # the MLP
    act_fn: str = "relu"
    gated_mlp: bool = False
    num_experts: int | None = None
    experts_per_token: int | None = None
    norm_topk_prob: bool = True  # the chosen experts' weights sum to one
    moe_layers: tuple[bool, ...] = ()  # which layers mix experts; () with num_experts: all
    d_expert: int | None = None  # None: d_mlp
    d_shared_expert: int | None = None  # the width of an expert that answers every token; None: there is none
    shared_expert_gate: bool = False  # a sigmoid decides how much of the shared expert's answer is added
    router: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"  # how logits become the experts' weights
    router_tolerance: float = 0.01  # of a sparsemixer: experts more than twice that worse than the best do not count
    router_groups: tuple[int, int] | None = None  # experts stand in so many groups; only the best so many are asked
    router_scale: float = 1.0  # the chosen experts' weights are multiplied by it

    # attention
    windows: tuple[int | None, ...] | int | None = ()  # None: the whole past
    attn_scale: float | None = None  # scores are divided by it; None: sqrt(d_head)
    scale_attn_by_inverse_layer_idx: bool = False
    query_growth: tuple[float, int] | None = None  # (β, n): queries grow by β for every e-fold of n positions
    attn_scores_soft_cap: float | None = None
    attn_sinks: bool = False  # every head can attend to nothing: a learned logit beside the scores
    clip_qkv: float | None = None  # queries, keys and values are held within ± this
    qk_norm: Literal["head", "heads", "full"] | None = None  # over a head, with weights for each ("heads"), over all
    qk_norm_type: Literal["LN", "RMS"] = "RMS"
    qk_norm_after_rotary: bool = False
    attn_block: int = 1024  # queries per block; a longer sequence attends block by block

    kv_lora_rank: int | None = None  # latent attention: keys and values are made from so many numbers per token
    q_lora_rank: int | None = None  # in latent attention: so are queries; None: from the residual stream
    d_v_head: int | None = None  # in latent attention: the width of values; None: d_head

    # positions
    positional_embedding_type: Literal["standard", "rotary", "shortformer", "alibi", "sinusoidal", "none"] = "standard"
    rotary: tuple[Rotary | None, ...] | Rotary = ()  # None: a layer without positions
    alibi_in_bfloat16: bool = False  # slope × place was rounded to it, and is divided by attn_scale as scores are
    pos_offset: int = 0  # the first token stands in this row of the table of positions

    # embedding and unembedding
    embed_scale: float = 1.0
    d_embed: int | None = None  # tokens are embedded in so many dimensions and mapped to d_model; None: at once
    post_embedding_ln: bool = False  # a norm follows the token embedding
    output_logits_scale: float = 1.0
    output_logits_soft_cap: float | None = None
    tie_word_embeddings: bool = False

    # numbers, initial weights, text
    dtype: str = "float32"
    init_mode: str = "gpt2"
    initializer_range: float | None = None  # None: 0.8 / sqrt(d_model) for "gpt2", gain 1 otherwise
    default_prepend_bos: bool = True

    def __post_init__(self) -> None:
        fill = functools.partial(object.__setattr__, self)
        check.sizes(self)
        if self.attn_only:
            fill("d_mlp", None)
        for name, value in self._following.items():
            if getattr(self, name) is None:
                fill(name, value)
        fill("windows", _per_layer("windows", self.windows, self.n_layers, None))
        rotary = self.rotary or (Rotary() if self.positional_embedding_type == "rotary" else ())
        if self.positional_embedding_type == "rotary":
            fill("rotary", _per_layer("rotary", rotary, self.n_layers, None))
        fill("moe_layers", _moe_layers(self))
        check.biases(self.biases)
        fill("biases", tuple(bias for bias in BIASES if bias in self.biases))
        fill("dtype", check.dtype_name(self.dtype))
        check.choices(self, rotary)
        check.layers(self)

    switched_on = frozenset()  # the hook points on request that every cache is to hold; see compat/config.py

    # what follows from the fields

    @property
    def _following(self) -> dict[str, Any]:
        """What the fields that were left at None are."""
        gain = 0.8 / self.d_model**0.5 if self.init_mode == "gpt2" else 1.0
        return {
            "n_key_value_heads": self.n_heads, "d_mlp": None if self.attn_only else 4 * self.d_model,
            "d_vocab_out": self.d_vocab, "attn_scale": self.d_head**0.5, "initializer_range": gain,
            "d_expert": (self.d_mlp or 4 * self.d_model) if self.num_experts else None,
        }  # fmt: skip

    @functools.cached_property
    def stacks(self) -> tuple[tuple[int, ...], ...]:
        """The layers grouped by the shape of their block, in order of first appearance; one group in most models."""
        kinds: dict[bool, list[int]] = {}
        for layer, mixes_experts in enumerate(self.moe_layers or (False,) * self.n_layers):
            kinds.setdefault(mixes_experts, []).append(layer)
        return tuple(tuple(layers) for layers in kinds.values())

    @functools.cached_property
    def stack_names(self) -> tuple[str, ...]:
        """How each group of `stacks` is written in parameter names: "*" for all layers, or "0,3-5" for those."""
        return ("*",) if len(self.stacks) == 1 else tuple(_ranges(layers) for layers in self.stacks)

    @property
    def rotary_dim(self) -> int | None:
        """How many dimensions of a head turn, or None where nothing does."""
        turning = next((rotary for rotary in self.rotary if rotary), None)
        return None if turning is None else turning.dim or self.d_head

    @property
    def slopes(self) -> tuple[float, ...]:
        """By how much each head's scores fall with distance (ALiBi, Press et al. 2021, arXiv 2108.12409).

        2^(-8/n), 2^(-16/n), … for n heads; where n is no power of two, those of the next lower one, and then every
        second slope of the next higher one.
        """
        lower = 2 ** int(math.log2(self.n_heads))
        few, many = ([2.0 ** (-8 * (i + 1) / n) for i in range(n)] for n in (lower, 2 * lower))
        return tuple(few + many[::2][: self.n_heads - lower])

    def __repr__(self) -> str:
        """The fields that are not at their defaults; what all layers share is said once."""
        said, silent = [], {name: self._following[name] for name in ("attn_scale", "initializer_range")}
        for field in dataclasses.fields(Config):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) > 1 and len(set(value)) == 1:
                value = value[0]
            if field.default is dataclasses.MISSING or value not in (field.default, silent.get(field.name), None, ()):
                said.append(f"{field.name}={value!r}")
        return f"Config({', '.join(said)})"

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed, validated again; a field that follows from others follows them again."""
        unset = {name: None for name, value in self._following.items() if getattr(self, name) == value}
        return dataclasses.replace(self, **{**unset, **changes})

    def first_layers(self, n_layers: int) -> "Config":
        """The Config of the model cut off after its first `n_layers` layers."""
        if not 1 <= n_layers <= self.n_layers:
            raise ValueError(f"first_n_layers is {n_layers}; the model has 1 to {self.n_layers} layers")
        cut = {name: getattr(self, name)[:n_layers] for name in ("windows", "rotary", "moe_layers")}
        return self.replace(n_layers=n_layers, **cut)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back to an equal Config."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Config)}
        return fields | {"rotary": [rotary_to_dict(rotary) for rotary in self.rotary]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Config":
        """The Config that `to_dict` wrote.

        Raises:
            ValueError: a field that Config does not have, or that it needs and did not get.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - set(known)):
            raise ValueError(f"Config has no field {unknown}; its fields are {sorted(known)}")
        needed = {name for name, field in known.items() if field.default is dataclasses.MISSING}
        if missing := sorted(needed - set(fields)):
            raise ValueError(f"Config needs the fields {missing}, which were not given")
        tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        rotary = {"rotary": tuple(rotary_from_dict(entry) for entry in fields.get("rotary", ()))}
        return cls(**{**fields, **tuples, **rotary})

    # a Config is the key of every compiled program: hashed once, compared by identity first

    @functools.cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in dataclasses.fields(Config)))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Config) or hash(self) != hash(other):
            return False
        return all(getattr(self, f.name) == getattr(other, f.name) for f in dataclasses.fields(Config))


def _ranges(layers: tuple[int, ...]) -> str:
    """(0, 3, 4, 5) as "0,3-5"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _per_layer(name: str, value: Any, n_layers: int, default: Any) -> tuple:
    """One entry per layer from a single value or from a sequence of that length."""
    if not isinstance(value, tuple | list):
        return (value,) * n_layers
    if len(value) not in (0, n_layers):
        raise ValueError(f"{name} has {len(value)} entries for {n_layers} layers; give one per layer, or a single one")
    return tuple(value) or (default,) * n_layers


def _moe_layers(cfg: Config) -> tuple[bool, ...]:
    if cfg.num_experts is None:
        if any(cfg.moe_layers):
            raise ValueError("moe_layers names layers that mix experts, but num_experts is None; give num_experts")
        return ()
    return _per_layer("moe_layers", cfg.moe_layers, cfg.n_layers, True)

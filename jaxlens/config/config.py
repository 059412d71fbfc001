"""`Config`: the shape and the arithmetic of one transformer, as a frozen and validated record.

Fields that TransformerLens has too have the same names. A field that can differ between layers is a tuple with one
entry per layer. A single value for such a field applies to every layer.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

from jaxlens.config import validation
from jaxlens.config.rope import Rotary, rotary_from_dict, rotary_to_dict
from jaxlens.config.validation import BIASES

WHOLE_PAST = 2**30
"""The window of a global layer. It is wider than any sequence, so global layers need no separate code."""

_note = functools.partial(dataclasses.field, compare=False, metadata={"note": True})
"""A field that does not affect the computation. Notes are ignored by `==` and `hash`, and are not saved."""


@dataclasses.dataclass(frozen=True)
class BlockKind:
    """The modules of a block. Blocks of the same kind have equal parameter shapes and are stored stacked."""

    attention: Literal["standard", "latent"]
    mlp: Literal["none", "plain", "gated", "experts"]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Config:
    """The shape and the arithmetic of one transformer.

    Fields that only TransformerLens has (`device`, `n_params`, `use_local_attn`, …) can be read as attributes.

    Example:
        >>> cfg = Config(n_layers=2, d_model=12, n_heads=3, d_head=5, d_vocab=50, n_ctx=16, windows=(None, 4))
        >>> cfg.d_mlp, cfg.n_key_value_heads, cfg.windows
        (48, 3, (None, 4))

    Raises:
        ValueError: A field has an invalid value. The message names the field, the value and the valid values.
    """

    # sizes
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_vocab: int
    n_ctx: int
    n_key_value_heads: int | None = None  # None: n_heads
    d_mlp: int | None = None  # None: 4 * d_model
    d_vocab_out: int | None = None  # None: d_vocab

    # the block
    attn_only: bool = False
    parallel_attn_mlp: bool = False  # attention and MLP read the same residual stream, and both outputs are added to it
    shared_norm: bool = False  # in a parallel block, attention and MLP share ln1
    normalization_type: Literal["LN", "LNPre", "RMS", "RMSPre"] | None = "LN"  # "Pre": without weights
    norm_placement: Literal["pre", "post", "both", "sum"] = "pre"  # before a sublayer, after, both, after the addition
    rmsnorm_uses_offset: bool = False  # norms (LayerNorms too) multiply by 1 + w
    eps: float = 1e-5
    residual_scale: float = 1.0  # multiplies what attention and MLP add to the residual stream
    biases: tuple[str, ...] = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "norm", "b_U")

    # the MLP
    act_fn: str = "relu"
    gated_mlp: bool = False
    num_experts: int | None = None
    experts_per_token: int | None = None
    norm_topk_prob: bool = True  # the weights of a token's experts are normalized to sum to 1
    moe_layers: tuple[bool, ...] = ()  # which layers have experts; () with num_experts: all layers
    d_expert: int | None = None  # None: d_mlp
    d_shared_expert: int | None = None  # width of the expert that every token uses; None: no such expert
    shared_expert_gate: bool = False  # a sigmoid gate multiplies the shared expert's output
    router: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"  # how router logits become expert weights
    router_tolerance: float = 0.01  # SparseMixer drops experts whose logit is lower by more than twice this (relative)
    router_groups: tuple[int, int] | None = None  # (n_groups, groups_kept): route only within the best groups
    router_scale: float = 1.0  # multiplies the weights of the chosen experts

    # attention
    windows: tuple[int | None, ...] | int | None = ()  # visible positions, including the query's; None: all earlier
    attn_scale: float | None = None  # scores are divided by it; None: sqrt(d_head)
    scale_attn_by_inverse_layer_idx: bool = False
    query_growth: tuple[float, int] | None = None  # (β, n): multiply queries by 1 + β ln(1 + ⌊position / n⌋) (Llama 4)
    attn_scores_soft_cap: float | None = None
    attn_sinks: bool = False  # every head has a learned sink logit, whose probability goes to no position
    clip_qkv: float | None = None  # clip queries, keys and values to ± this value
    # "head": norm of each head, with shared weights; "heads": with weights per head; "full": norm of all heads together
    qk_norm: Literal["head", "heads", "full"] | None = None
    qk_norm_type: Literal["LN", "RMS"] = "RMS"
    qk_norm_after_rotary: bool = False
    attn_block: int = 256  # queries per block; longer sequences use blockwise attention

    kv_lora_rank: int | None = None  # latent attention: size of the latent that keys and values are computed from
    q_lora_rank: int | None = None  # latent attention: size of the latent of queries; None: queries read the residual
    d_v_head: int | None = None  # latent attention: width of a value head; None: d_head

    # positions
    positional_embedding_type: Literal["standard", "rotary", "shortformer", "alibi", "sinusoidal", "none"] = "standard"
    rotary: tuple[Rotary | None, ...] | Rotary = ()  # None: a layer without position information
    alibi_in_bfloat16: bool = False  # round slope × position to bfloat16, and divide it by attn_scale like the scores
    pos_offset: int = 0  # row of the position table that the first token uses

    # embedding and unembedding
    embed_scale: float = 1.0
    d_embed: int | None = None  # width of the token embedding, which is then projected to d_model; None: d_model
    post_embedding_ln: bool = False  # a norm after the token embedding
    final_rms: bool | None = None  # the final norm is an RMSNorm; None: if the other norms are
    output_logits_scale: float = 1.0
    output_logits_soft_cap: float | None = None
    tie_word_embeddings: bool = False
    # what W_U computes: logits of the next token, or scores of labels, for each token or for the whole sequence; None:
    # there is no W_U, and the model ends with the final norm
    output_head: Literal["next_token", "token_labels", "sequence_labels"] | None = "next_token"

    # low-rank updates (LoRA): the weights that have one, and the rank of the updates
    adapter: tuple[str, ...] = ()
    adapter_rank: int | None = None

    # numbers, initial weights, text
    dtype: str = "float32"
    init_mode: str = "gpt2"
    initializer_range: float | None = None  # None: 0.8 / sqrt(d_model) for "gpt2", gain 1 otherwise
    default_prepend_bos: bool = True

    # notes
    model_name: str = _note(default="custom")
    revision: str | None = _note(default=None)  # the commit of the Hugging Face repository; None: loaded from elsewhere
    seed: int | None = _note(default=None)  # of the initial weights; None: 0
    tokenizer_name: str | None = _note(default=None)  # a Hugging Face id or folder, loaded with the model
    # the checkpoint's generation_config.json, of which `generate` reads `eos_token_id`; None: there is no such file
    generation_config: Mapping[str, Any] | None = _note(default=None)
    switched_on: frozenset[str] = _note(default=frozenset())  # on-request hook points that unfiltered caches contain
    checkpoint_index: int | None = _note(default=None)  # the training checkpoint that was loaded: its index, its step
    checkpoint_value: int | None = _note(default=None)  # or number of tokens, and which of the two ("step", "token")
    checkpoint_label_type: str | None = _note(default=None)
    weights_on: Any = _note(default=None)  # noqa: RUF009 -- the device `model.to` moved weights to; None: the default

    def __post_init__(self) -> None:
        fill = functools.partial(object.__setattr__, self)
        validation.check_sizes(self)
        if self.attn_only:
            fill("d_mlp", None)
        derived = {name: value for name, value in self._derived_defaults.items() if getattr(self, name) is None}
        fill("_derived", tuple(derived))
        for name, value in derived.items():
            fill(name, value)
        fill("windows", _per_layer("windows", self.windows, self.n_layers, None))
        rotary = self.rotary or (Rotary() if self.positional_embedding_type == "rotary" else ())
        if self.positional_embedding_type == "rotary":
            fill("rotary", _per_layer("rotary", rotary, self.n_layers, None))
        fill("moe_layers", _moe_layers(self))
        validation.check_biases(self.biases)
        fill("biases", tuple(bias for bias in BIASES if bias in self.biases))
        fill("dtype", validation.dtype_name(self.dtype))
        validation.check_choices(self, rotary)
        validation.check_layers(self)

    # --- derived from the fields

    @property
    def _derived_defaults(self) -> dict[str, Any]:
        """The values that replace None in fields with a derived default."""
        gain = 0.8 / self.d_model**0.5 if self.init_mode == "gpt2" else 1.0
        return {
            "n_key_value_heads": self.n_heads, "d_mlp": None if self.attn_only else 4 * self.d_model,
            "d_vocab_out": self.d_vocab, "attn_scale": self.d_head**0.5, "initializer_range": gain,
            "d_expert": (self.d_mlp or 4 * self.d_model) if self.num_experts else None,
            "final_rms": self.normalization_type in ("RMS", "RMSPre"),
        }  # fmt: skip

    def block_kind(self, layer: int) -> BlockKind:
        """The modules of the block of `layer`."""
        attention = "standard" if self.kv_lora_rank is None else "latent"
        if self.attn_only:
            return BlockKind(attention, "none")
        if self.moe_layers and self.moe_layers[layer]:
            return BlockKind(attention, "experts")
        return BlockKind(attention, "gated" if self.gated_mlp else "plain")

    @functools.cached_property
    def stacks(self) -> tuple[tuple[int, ...], ...]:
        """The layers grouped by block kind, in order of first appearance. Most models have one group."""
        kinds: dict[BlockKind, list[int]] = {}
        for layer in range(self.n_layers):
            kinds.setdefault(self.block_kind(layer), []).append(layer)
        return tuple(tuple(layers) for layers in kinds.values())

    @functools.cached_property
    def stack_names(self) -> tuple[str, ...]:
        """The name of each group of `stacks` in parameter names: "*" for a single group, else layers as in "0,3-5"."""
        return ("*",) if len(self.stacks) == 1 else tuple(_ranges(layers) for layers in self.stacks)

    @property
    def rotary_dim(self) -> int | None:
        """The number of rotated dimensions of a head. None if no layer has rotary positions."""
        rotated = next((rotary for rotary in self.rotary if rotary), None)
        return None if rotated is None else rotated.dim or self.d_head

    @property
    def has_final_norm(self) -> bool:
        """Whether `ln_final` exists. With norm_placement="sum" the last block ends in a norm already."""
        return self.normalization_type is not None and self.norm_placement != "sum"

    @property
    def final_norm_type(self) -> str | None:
        """The `normalization_type` of `ln_final`."""
        return self.normalization_type.replace("LN", "RMS") if self.final_rms else self.normalization_type

    @property
    def alibi_slopes(self) -> tuple[float, ...]:
        """The decrease of each head's scores per position of distance (ALiBi, Press et al. 2021, arXiv 2108.12409).

        2^(-8/n), 2^(-16/n), … for n heads. If n is not a power of two: the slopes for the next lower power of two, then
        every second slope for the next higher power.
        """
        lower = 2 ** int(math.log2(self.n_heads))
        few, many = ([2.0 ** (-8 * (i + 1) / n) for i in range(n)] for n in (lower, 2 * lower))
        return tuple(few + many[::2][: self.n_heads - lower])

    # --- copies, JSON, comparison

    def __repr__(self) -> str:
        """The fields that differ from their defaults. A value that all layers share is printed once."""
        names = ("attn_scale", "initializer_range", "final_rms")
        shown, derived = [], {name: self._derived_defaults[name] for name in names}
        for name, field in _FIELDS.items():
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) > 1 and len(set(value)) == 1:
                value = value[0]
            if field.default is dataclasses.MISSING or value not in (field.default, derived.get(name), None, ()):
                shown.append(f"{name}={value!r}")
        return f"Config({', '.join(shown)})"

    def replace(self, **changes: Any) -> "Config":
        """A validated copy with some fields changed. A default that was derived from other fields is derived again.

        A value that was given is kept, even if it equals the default. All fields of `from_dict` are given.

        Example:
            >>> sizes = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "d_vocab": 9, "n_ctx": 5}
            >>> Config(**sizes).replace(d_model=16).d_mlp, Config(**sizes, d_mlp=32).replace(d_model=16).d_mlp
            (64, 32)
        """
        return dataclasses.replace(self, **{**dict.fromkeys(self._derived), **changes})

    def with_field(self, name: str, value: Any) -> "Config":
        """A copy in which one field has another value. Fields of TransformerLens are fields too.

        Raises:
            ValueError: The value is invalid, or the field is derived from others.
            AttributeError: There is no such field.
        """
        from jaxlens.transformer_lens.config import with_field

        return with_field(self, name, value)

    def first_layers(self, n_layers: int) -> "Config":
        """The Config of this model's first `n_layers` layers."""
        if not 1 <= n_layers <= self.n_layers:
            raise ValueError(f"first_n_layers is {n_layers}; expected 1 to {self.n_layers}, the layers of the model")
        cut = {name: getattr(self, name)[:n_layers] for name in ("windows", "rotary", "moe_layers")}
        return self.replace(n_layers=n_layers, **cut)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, without notes. `from_dict` returns an equal Config for them."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return fields | {"rotary": [rotary_to_dict(rotary) for rotary in self.rotary]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Config":
        """The Config of a dict that `to_dict` returned.

        Raises:
            ValueError: A field is unknown or invalid, or a required field is missing.
        """
        if unknown := sorted(set(fields) - set(_FIELDS)):
            raise ValueError(f"Config has no field {unknown}; its fields are {sorted(_FIELDS)}")
        required = {name for name, field in _FIELDS.items() if field.default is dataclasses.MISSING}
        if missing := sorted(required - set(fields)):
            raise ValueError(f"Config needs the fields {missing}, which were not given")
        return Config(**from_json(fields))

    def __getattr__(self, name: str) -> Any:
        """A field that only TransformerLens has, computed from this config."""
        if name.startswith("_"):  # copy and pickle look up private names before the fields exist
            raise AttributeError(f"Config has no field {name!r}")
        from jaxlens.transformer_lens.config import read_field

        return read_field(self, name)

    # A Config is part of the key of every compiled program. So the hash is cached, and identity is compared first.

    @functools.cached_property
    def _key(self) -> tuple:
        return tuple(getattr(self, name) for name in _FIELDS)

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickle, without the hash and the device, which differ in another process."""
        return {name: value for name, value in vars(self).items() if name != "_hash"} | {"weights_on": None}

    def __copy__(self) -> "Config":
        return self

    def __deepcopy__(self, memo: dict) -> "Config":
        return self

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Config) or hash(self) != hash(other) or self._key != other._key:
            return False
        vars(self)["_key"] = other._key  # the next comparison finds identical values
        return True


def _refuse(self: Config, name: str, value: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"a Config cannot be changed; write cfg = cfg.replace({name}=...)")


Config.__setattr__ = _refuse

_FIELDS = {field.name: field for field in dataclasses.fields(Config) if not field.metadata}
"""The fields of a Config without notes."""


def from_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Converts fields from JSON: lists to tuples, and the entries of `rotary` to Rotary objects."""
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    if isinstance(tuples.get("rotary"), tuple):
        tuples["rotary"] = tuple(rotary_from_dict(entry) for entry in tuples["rotary"])
    return tuples


def _ranges(layers: tuple[int, ...]) -> str:
    """The string "0,3-5" for the layers (0, 3, 4, 5)."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _per_layer(name: str, value: Any, n_layers: int, default: Any) -> tuple:
    """One entry per layer, from a single value or from a sequence of that length. `default` replaces an empty one."""
    if not isinstance(value, tuple | list):
        return (value,) * n_layers
    if len(value) not in (0, n_layers):
        raise ValueError(f"{name} has {len(value)} entries; expected one value, or one for each of {n_layers} layers")
    return tuple(value) or (default,) * n_layers


def _moe_layers(cfg: Config) -> tuple[bool, ...]:
    if cfg.num_experts is None:
        if any(cfg.moe_layers):
            raise ValueError("moe_layers selects layers with experts, but num_experts is None; set num_experts")
        return ()
    return _per_layer("moe_layers", cfg.moe_layers, cfg.n_layers, True)

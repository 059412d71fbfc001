"""The checks of a Config: the valid values of its fields, and the errors for invalid values."""

from typing import Any

from jaxlens.config.rope import LongRope

BIASES = (
    "b_Q", "b_K", "b_V", "b_O", "b_in", "b_gate", "b_out", "norm", "qk_norm", "b_router", "b_choice", "b_U",
)  # fmt: skip
"""Every bias a model can have. `qk_norm` stands for the biases of the norms of queries and keys, `norm` for those of
all other LayerNorms. `b_choice` is added to router logits to choose experts, but not to compute their weights."""

HEADS = {"b_Q", "b_K", "b_V"}

ADAPTED = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out")
"""The weights that can have a low-rank update."""

ACTIVATIONS = (
    "relu", "relu2", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "solu", "solu_ln", "xielu",
    "clamped_swiglu",
)  # fmt: skip
NORMS = ("LN", "LNPre", "RMS", "RMSPre", None)
POSITIONS = ("standard", "rotary", "shortformer", "alibi", "sinusoidal", "none")
INIT_MODES = ("gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def dtype_name(dtype: Any) -> str:
    """ "float32" from jnp.float32, numpy.dtype("float32"), torch.float32 or "float32"."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", str(dtype))
    name = name.removeprefix("torch.")  # the str of a torch dtype, which has no name
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return name


def check_sizes(cfg: Any) -> None:
    for name in ("n_layers", "d_model", "n_heads", "d_head", "d_vocab", "n_ctx"):
        _positive_int(name, getattr(cfg, name))
    optional = (
        "n_key_value_heads", "d_mlp", "d_vocab_out", "d_embed", "num_experts", "experts_per_token", "d_expert",
        "d_shared_expert", "q_lora_rank", "kv_lora_rank", "d_v_head", "adapter_rank",
    )  # fmt: skip
    for name in optional:
        if getattr(cfg, name) is not None:
            _positive_int(name, getattr(cfg, name))
    _positive_int("attn_block", cfg.attn_block)
    heads = cfg.n_key_value_heads or cfg.n_heads
    if cfg.n_heads % heads:
        raise ValueError(f"n_key_value_heads is {heads}; expected a divisor of n_heads = {cfg.n_heads}")


def _positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive integer")


def check_biases(biases: Any) -> None:
    if isinstance(biases, str) or (unknown := [bias for bias in biases if bias not in BIASES]):
        wrong = biases if isinstance(biases, str) else tuple(unknown)
        raise ValueError(f"biases contains {wrong!r}; expected a tuple of {', '.join(map(repr, BIASES))}")


def check_choices(cfg: Any, rotary: Any) -> None:
    fields = {
        "normalization_type": NORMS, "norm_placement": ("pre", "post", "both", "sum"), "act_fn": ACTIVATIONS,
        "positional_embedding_type": POSITIONS, "qk_norm": ("head", "heads", "full", None),
        "qk_norm_type": ("LN", "RMS"), "router": ("softmax", "sigmoid", "sparsemixer"), "init_mode": INIT_MODES,
        "output_head": ("next_token", "token_labels", "sequence_labels", None),
    }  # fmt: skip
    for name, allowed in fields.items():
        if getattr(cfg, name) not in allowed:
            raise ValueError(f"{name} is {getattr(cfg, name)!r}; expected one of {', '.join(map(repr, allowed))}")
    if rotary and cfg.positional_embedding_type != "rotary":
        kind = f'positional_embedding_type is "{cfg.positional_embedding_type}"'
        raise ValueError(f'rotary is set, but {kind}; pass positional_embedding_type="rotary"')
    is_rms, is_ln = (cfg.normalization_type in (kind, f"{kind}Pre") for kind in ("RMS", "LN"))
    if cfg.final_rms != is_rms and not (is_ln and cfg.has_final_norm):
        fields = f"normalization_type={cfg.normalization_type!r} and norm_placement={cfg.norm_placement!r}"
        raise ValueError(f"final_rms is {cfg.final_rms!r}; expected {is_rms}, or None, with {fields}")
    if cfg.shared_norm and not cfg.parallel_attn_mlp:
        raise ValueError("shared_norm means one norm for attention and MLP; pass parallel_attn_mlp=True with it")
    if cfg.norm_placement == "sum" and (cfg.parallel_attn_mlp or cfg.attn_only or cfg.residual_scale != 1):
        excluded = "parallel_attn_mlp, attn_only and residual_scale"
        raise ValueError(f'norm_placement="sum" needs a sequential block with an MLP; leave {excluded} unset')
    if cfg.attn_only and (cfg.gated_mlp or cfg.num_experts or cfg.parallel_attn_mlp):
        raise ValueError("an attn_only model has no MLP; leave gated_mlp, num_experts and parallel_attn_mlp unset")
    if cfg.tie_word_embeddings and cfg.d_vocab_out != cfg.d_vocab:
        expected = f"d_vocab = {cfg.d_vocab}, because tie_word_embeddings is True"
        raise ValueError(f"d_vocab_out is {cfg.d_vocab_out}; expected {expected}")
    if cfg.tie_word_embeddings and cfg.output_head != "next_token":
        raise ValueError(f"tie_word_embeddings is True; expected False with output_head={cfg.output_head!r}")
    if cfg.gated_mlp and cfg.act_fn.endswith("_ln"):
        problem = "has a norm inside the MLP, which a gated MLP does not have"
        raise ValueError(f"act_fn={cfg.act_fn!r} {problem}; pass gated_mlp=False")
    positive = (
        "attn_scores_soft_cap", "output_logits_soft_cap", "attn_scale", "eps", "initializer_range", "clip_qkv",
        "residual_scale", "output_logits_scale", "router_scale",
    )  # fmt: skip
    for name in positive:
        value = getattr(cfg, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value!r}; expected a positive number, or None for the default")
    _check_dependent_fields(cfg)


def _check_dependent_fields(cfg: Any) -> None:
    """Checks the fields that have an effect only in combination with another field."""
    experts, latent = (cfg.num_experts, "num_experts"), (cfg.kv_lora_rank, "kv_lora_rank")
    positions = cfg.positional_embedding_type
    needs = {
        "d_expert": experts, "d_shared_expert": experts, "router_groups": experts,
        "shared_expert_gate": (cfg.d_shared_expert, "d_shared_expert"),
        "q_lora_rank": latent, "d_v_head": latent,
        "qk_norm_after_rotary": (cfg.qk_norm and cfg.rotary, "qk_norm and rotary positions"),
        "alibi_in_bfloat16": (positions == "alibi", 'positional_embedding_type="alibi"'),
        "pos_offset": (positions in ("standard", "sinusoidal"), 'positional_embedding_type "standard" or "sinusoidal"'),
    }  # fmt: skip
    for name, (condition, needed) in needs.items():
        if getattr(cfg, name) and not condition:
            raise ValueError(f"{name} is {getattr(cfg, name)!r}, which has no effect without {needed}")
    if cfg.router_groups:
        groups, kept = cfg.router_groups
        if cfg.num_experts % groups or not 1 <= kept <= groups:
            where = f"where n_groups divides num_experts = {cfg.num_experts} and 1 <= groups_kept <= n_groups"
            raise ValueError(f"router_groups is {cfg.router_groups}; expected (n_groups, groups_kept) {where}")
    grouped = cfg.n_key_value_heads != cfg.n_heads
    if cfg.kv_lora_rank and (cfg.qk_norm or grouped or not cfg.rotary or HEADS & {*cfg.biases}):
        required = "rotary positions and n_key_value_heads == n_heads"
        raise ValueError(f"kv_lora_rank requires {required}, and excludes qk_norm, b_Q, b_K and b_V")
    _check_adapter(cfg)
    if cfg.act_fn == "clamped_swiglu" and not cfg.gated_mlp:
        raise ValueError('act_fn="clamped_swiglu" needs gated_mlp=True')
    if cfg.act_fn == "xielu" and (cfg.gated_mlp or cfg.num_experts):
        raise ValueError('act_fn="xielu" needs a plain MLP; pass gated_mlp=False and num_experts=None')


def _check_adapter(cfg: Any) -> None:
    """Checks the low-rank updates."""
    unavailable = {"W_in", "W_gate", "W_out"} if cfg.attn_only or cfg.num_experts else set()
    unavailable |= {"W_gate"} if not cfg.gated_mlp else set()
    possible = [] if cfg.kv_lora_rank else [name for name in ADAPTED if name not in unavailable]
    if wrong := [name for name in cfg.adapter if name not in possible]:
        raise ValueError(f"adapter contains {wrong}; expected weights of this model among {possible}")
    if bool(cfg.adapter) != (cfg.adapter_rank is not None):
        raise ValueError(f"adapter is {cfg.adapter!r} and adapter_rank is {cfg.adapter_rank!r}; pass both, or none")


def check_layers(cfg: Any) -> None:
    for layer, window in enumerate(cfg.windows):
        if window is not None:
            _positive_int(f"windows[{layer}]", window)
    if cfg.num_experts is None and cfg.experts_per_token is not None:
        raise ValueError(f"experts_per_token is {cfg.experts_per_token}, but num_experts is None; pass num_experts too")
    if cfg.num_experts is not None:
        chosen = cfg.experts_per_token
        if chosen is None or chosen > cfg.num_experts:
            raise ValueError(f"experts_per_token is {chosen}; expected 1 to num_experts = {cfg.num_experts}")
    rotated = {(r.dim or cfg.d_head, r.adjacent_pairs) for r in cfg.rotary if r}
    if len(rotated) > 1:
        raise ValueError(f"all rotary layers must have the same dim and adjacent_pairs; got {sorted(rotated)}")
    for dim, _ in rotated:
        if dim > cfg.d_head or dim % 2:
            raise ValueError(f"rotary dim is {dim}; expected an even number up to d_head = {cfg.d_head}")
    for rotary in cfg.rotary:
        if rotary and isinstance(rotary.scaling, LongRope):
            _check_long_rope(rotary.scaling, cfg.rotary_dim // 2)


def _check_long_rope(scaling: LongRope, n_frequencies: int) -> None:
    for name in ("short_factor", "long_factor"):
        length = len(getattr(scaling, name))
        if length != n_frequencies:
            raise ValueError(f"LongRope {name} has {length} entries; expected {n_frequencies}, one per frequency")

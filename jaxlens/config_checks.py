"""What a Config may hold: the choices of its fields, and what is said of a wrong one."""

from typing import Any

from jaxlens.rotary import LongRope

BIASES = (
    "b_Q", "b_K", "b_V", "b_O", "b_in", "b_gate", "b_out", "norm", "qk_norm", "b_router", "b_choice", "b_U",
)  # fmt: skip
"""Every bias a model can have. `norm` is the bias of all its LayerNorms, `qk_norm` that of those of queries and keys;
`b_choice` counts when a router chooses experts, and not in the weights of those it has chosen."""

HEADS = {"b_Q", "b_K", "b_V"}

ACTIVATIONS = (
    "relu", "relu2", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "solu", "solu_ln", "xielu",
    "clamped_swiglu",
)  # fmt: skip
NORMS = ("LN", "LNPre", "RMS", "RMSPre", None)
POSITIONS = ("standard", "rotary", "shortformer", "alibi", "sinusoidal", "none")
INIT_MODES = ("gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def dtype_name(dtype: Any) -> str:
    """"float32" from jnp.float32, numpy.dtype("float32") or "float32"."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", str(dtype))
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; wanted one of {', '.join(DTYPES)}")
    return name


def sizes(cfg: Any) -> None:
    for name in ("n_layers", "d_model", "n_heads", "d_head", "d_vocab", "n_ctx"):
        _positive_int(name, getattr(cfg, name))
    optional = (
        "n_key_value_heads", "d_mlp", "d_vocab_out", "d_embed", "num_experts", "experts_per_token", "d_expert",
        "d_shared_expert", "q_lora_rank", "kv_lora_rank", "d_v_head",
    )  # fmt: skip
    for name in optional:
        if getattr(cfg, name) is not None:
            _positive_int(name, getattr(cfg, name))
    _positive_int("attn_block", cfg.attn_block)
    heads = cfg.n_key_value_heads or cfg.n_heads
    if cfg.n_heads % heads:
        raise ValueError(f"n_key_value_heads is {heads}, which does not divide n_heads = {cfg.n_heads}")


def _positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; wanted a positive whole number")


def biases(given: Any) -> None:
    if isinstance(given, str) or (unknown := [bias for bias in given if bias not in BIASES]):
        odd = given if isinstance(given, str) else tuple(unknown)
        raise ValueError(f"biases has {odd!r}; wanted a tuple of {', '.join(map(repr, BIASES))}")


def choices(cfg: Any, rotary: Any) -> None:
    choices = {
        "normalization_type": NORMS,
        "norm_placement": ("pre", "post", "both", "sum"),
        "act_fn": ACTIVATIONS,
        "positional_embedding_type": POSITIONS,
        "qk_norm": ("head", "heads", "full", None),
        "qk_norm_type": ("LN", "RMS"),
        "router": ("softmax", "sigmoid", "sparsemixer"),
        "init_mode": INIT_MODES,
    }
    for name, allowed in choices.items():
        if getattr(cfg, name) not in allowed:
            raise ValueError(f"{name} is {getattr(cfg, name)!r}; wanted one of {', '.join(map(repr, allowed))}")
    if rotary and cfg.positional_embedding_type != "rotary":
        raise ValueError(
            f'rotary is given but positional_embedding_type is "{cfg.positional_embedding_type}"; set it to "rotary"'
        )
    if cfg.shared_norm and not cfg.parallel_attn_mlp:
        raise ValueError("shared_norm means one norm before attention and MLP; it needs parallel_attn_mlp=True")
    if cfg.norm_placement == "sum" and (cfg.parallel_attn_mlp or cfg.attn_only or cfg.residual_scale != 1):
        raise ValueError(
            'norm_placement="sum" is of attention, then an MLP: no parallel or attention-only block, no residual_scale'
        )
    if cfg.attn_only and (cfg.gated_mlp or cfg.num_experts or cfg.parallel_attn_mlp):
        raise ValueError("attn_only leaves no MLP; gated_mlp, num_experts and parallel_attn_mlp must stay unset")
    if cfg.tie_word_embeddings and cfg.d_vocab_out != cfg.d_vocab:
        raise ValueError(f"tied embeddings give d_vocab = {cfg.d_vocab} logits; d_vocab_out is {cfg.d_vocab_out}")
    if cfg.gated_mlp and cfg.act_fn.endswith("_ln"):
        raise ValueError(f"act_fn {cfg.act_fn!r} normalises inside the MLP; no gated MLP does: set gated_mlp=False")
    positive = (
        "attn_scores_soft_cap", "output_logits_soft_cap", "attn_scale", "eps", "initializer_range", "clip_qkv",
        "residual_scale", "output_logits_scale", "router_scale",
    )  # fmt: skip
    for name in positive:
        value = getattr(cfg, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value!r}; wanted a positive number, or None for the default")
    _extras(cfg)


def _extras(cfg: Any) -> None:
    """Fields that mean something only beside another."""
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
    for name, (there, wanted) in needs.items():
        if getattr(cfg, name) and not there:
            raise ValueError(f"{name} is {getattr(cfg, name)!r}, which means nothing in this model: it needs {wanted}")
    if cfg.router_groups:
        groups, kept = cfg.router_groups
        if cfg.num_experts % groups or not 1 <= kept <= groups:
            raise ValueError(
                f"router_groups is {cfg.router_groups}; wanted a divisor of num_experts = {cfg.num_experts}, and how "
                "many of these groups are asked"
            )
    grouped = cfg.n_key_value_heads != cfg.n_heads
    if cfg.kv_lora_rank and (cfg.qk_norm or grouped or not cfg.rotary or HEADS & {*cfg.biases}):
        raise ValueError(
            "latent attention (kv_lora_rank) is there with rotary positions, as many key as query heads, and neither "
            "qk_norm nor biases of heads"
        )
    if cfg.act_fn == "clamped_swiglu" and not cfg.gated_mlp:
        raise ValueError('act_fn "clamped_swiglu" is of a gate and what it multiplies; set gated_mlp=True')
    if cfg.act_fn == "xielu" and (cfg.gated_mlp or cfg.num_experts):
        raise ValueError('act_fn "xielu" has weights of its own, for an MLP without a gate: set gated_mlp=False')


def layers(cfg: Any) -> None:
    for layer, window in enumerate(cfg.windows):
        if window is not None:
            _positive_int(f"windows[{layer}]", window)
    if cfg.num_experts is None and cfg.experts_per_token is not None:
        raise ValueError(f"experts_per_token is {cfg.experts_per_token}, but num_experts is None; give num_experts")
    if cfg.num_experts is not None:
        chosen = cfg.experts_per_token
        if chosen is None or chosen > cfg.num_experts:
            raise ValueError(f"experts_per_token is {chosen}; wanted 1 to num_experts = {cfg.num_experts}")
    turning = {(r.dim or cfg.d_head, r.adjacent_pairs) for r in cfg.rotary if r}
    if len(turning) > 1:
        raise ValueError(f"rotary layers turn different dimensions {sorted(turning)}; all layers must agree")
    for dim, _ in turning:
        if dim > cfg.d_head or dim % 2:
            raise ValueError(f"rotary dim is {dim}; wanted an even number up to d_head = {cfg.d_head}")
    for rotary in cfg.rotary:
        if rotary and isinstance(rotary.scaling, LongRope):
            _long_rope(rotary.scaling, cfg.rotary_dim // 2)


def _long_rope(scaling: LongRope, n_frequencies: int) -> None:
    for name in ("short_factor", "long_factor"):
        if len(getattr(scaling, name)) != n_frequencies:
            given = len(getattr(scaling, name))
            raise ValueError(f"LongRope {name} has {given} entries; wanted {n_frequencies}, one per frequency")


def check_adds_up(cfg: Any) -> None:
    """
    Raises:
        ValueError: what is written to the residual stream does not stay there as it was written.
    """
    if cfg.norm_placement == "sum" and cfg.normalization_type is not None:
        raise ValueError(
            "the residual stream of this model is no sum of what was written to it: every sum passes a norm "
            '(norm_placement="sum"). A cache\'s decompositions follow what was written through these norms; '
            "hook_resid_mid and hook_resid_post can be read, patched and differentiated"
        )


def check_heads_are_linear(cfg: Any) -> None:
    """
    Raises:
        ValueError: what a head reads is no linear map of what attention reads.
    """
    if cfg.kv_lora_rank is not None:
        raise ValueError(
            "heads of latent attention have no QK and OV circuits and no edges of their own: a norm stands between the "
            "two maps that make keys and values; hook_q, hook_k, hook_v and hook_kv_latent can be read and patched"
        )

"""Configs"""

# %% sizes
cfg = model.cfg
cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab, cfg.d_vocab_out, cfg.n_ctx

# %% architecture
cfg = model.cfg
cfg.act_fn, cfg.normalization_type, cfg.positional_embedding_type, cfg.attn_only, cfg.gated_mlp, cfg.eps

# %% attention
cfg = model.cfg
cfg.attention_dir, cfg.use_attn_scale, float(cfg.attn_scale), cfg.scale_attn_by_inverse_layer_idx, cfg.use_local_attn

# %% grouped-query attention @llama
model.cfg.n_key_value_heads

# %% rotary embeddings
cfg = model.cfg
cfg.rotary_dim, cfg.rotary_base, cfg.rotary_adjacent_pairs, cfg.use_NTK_by_parts_rope, cfg.use_yarn_rope

# %% switches of hook points
cfg = model.cfg
cfg.use_attn_result, cfg.use_split_qkv_input, cfg.use_hook_mlp_in, cfg.use_attn_in, cfg.ungroup_grouped_query_attention

# %% fields with default values
cfg = model.cfg
(cfg.parallel_attn_mlp, cfg.use_qk_norm, cfg.num_experts, cfg.experts_per_token, cfg.window_size, cfg.attn_types,
 cfg.use_normalization_before_and_after, cfg.post_embedding_ln, cfg.default_prepend_bos, cfg.n_devices, cfg.model_name, cfg.init_mode, cfg.tokenizer_name, cfg.load_in_4bit)

# %% seed and initialization
model.cfg.seed, model.cfg.init_mode, float(model.cfg.initializer_range)

# %% a config and a model
from transformer_lens import HookedTransformer, HookedTransformerConfig

cfg = HookedTransformerConfig(
    n_layers=2, d_model=16, n_ctx=12, d_head=4, n_heads=4, d_mlp=32, d_vocab=31, act_fn="relu",
    normalization_type="LN", device="cpu", seed=0)
small = HookedTransformer(cfg)
tuple(small(tokens).shape), small.cfg.n_params, small.n_params_total

# %% an attention-only model
from transformer_lens import HookedTransformer, HookedTransformerConfig

cfg = HookedTransformerConfig(
    d_model=16, d_head=4, n_heads=4, n_layers=2, n_ctx=12, d_vocab=31, attn_only=True, normalization_type=None)
small = HookedTransformer(cfg)
small.cfg.attn_only, small.cfg.n_params, list(small.run_with_cache(tokens)[1].keys())

# %% sizes computed from other sizes
from transformer_lens import HookedTransformerConfig

cfg = HookedTransformerConfig(n_layers=1, d_model=12, d_head=3, n_ctx=5, d_vocab=7, act_fn="gelu")
cfg.n_heads, cfg.d_mlp, cfg.d_vocab_out, cfg.n_params

# %% a config from a dictionary
from transformer_lens import HookedTransformer, HookedTransformerConfig

fields = {"n_layers": 1, "d_model": 12, "d_head": 3, "n_heads": 4, "n_ctx": 9, "d_vocab": 31, "act_fn": "silu"}
a, b = HookedTransformerConfig.from_dict(fields), HookedTransformerConfig.unwrap(fields)
a.n_layers, b.d_head, HookedTransformerConfig.unwrap(a) is a, tuple(HookedTransformer(fields)(tokens).shape)

# %% a config as a dictionary
from transformer_lens import HookedTransformerConfig

fields = model.cfg.to_dict()
again = HookedTransformerConfig.from_dict(fields)
fields["d_model"], fields["act_fn"], again.n_heads, again.normalization_type

# %% a model with the config and weights of another model
from transformer_lens import HookedTransformer

twin = HookedTransformer(model.cfg)
twin.load_state_dict(model.state_dict())
twin(tokens)

# %% an algorithmic task with a separate output vocabulary
from transformer_lens import HookedTransformer, HookedTransformerConfig

cfg = HookedTransformerConfig(
    n_layers=1, n_heads=4, d_model=16, d_head=4, d_mlp=32, act_fn="relu", normalization_type=None, d_vocab=31,
    d_vocab_out=5, n_ctx=9, init_weights=True, device="cpu", seed=999)
tuple(HookedTransformer(cfg)(tokens).shape)

# %% local attention
from transformer_lens import HookedTransformer, HookedTransformerConfig

cfg = HookedTransformerConfig(
    n_layers=2, d_model=16, d_head=4, n_heads=4, d_vocab=31, n_ctx=9, act_fn="gelu_new", use_local_attn=True,
    window_size=3, attn_types=["global", "local"], use_attn_scale=False)
local = HookedTransformer(cfg)
_, cache = local.run_with_cache(tokens)
cfg.window_size, cfg.attn_types, cfg.use_local_attn, (cache["pattern", 1] > 0), (cache["pattern", 0] > 0)

# %% rotary embeddings of Llama 3
from transformer_lens import HookedTransformerConfig

cfg = HookedTransformerConfig(
    n_layers=1, d_model=16, d_head=4, n_heads=4, d_vocab=31, n_ctx=9, act_fn="silu", gated_mlp=True,
    normalization_type="RMS", positional_embedding_type="rotary", rotary_base=500000.0, use_NTK_by_parts_rope=True,
    NTK_by_parts_low_freq_factor=1.0, NTK_by_parts_high_freq_factor=4.0, NTK_by_parts_factor=32.0,
    NTK_original_ctx_len=8192)
cfg.rotary_base, cfg.use_NTK_by_parts_rope, cfg.NTK_by_parts_factor, cfg.NTK_original_ctx_len, cfg.rotary_dim

# %% normalization inside the activation function
from transformer_lens import HookedTransformerConfig

cfg = HookedTransformerConfig(n_layers=1, d_model=12, d_head=3, n_ctx=5, d_vocab=7, act_fn="solu_ln")
cfg.is_layer_norm_activation(), model.cfg.is_layer_norm_activation()

# %% the device
from transformer_lens import utils

str(utils.get_device())

# %% an array on the model's device
torch.zeros(3, device=model.cfg.device, dtype=model.cfg.dtype)
# --- jaxlens
jnp.zeros(3, device=model.cfg.device, dtype=model.cfg.dtype)

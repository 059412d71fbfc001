"""Reading activations"""

# %% a cache of all activations
logits, cache = model.run_with_cache(tokens)
logits, list(cache.keys())

# %% full names
cache["blocks.1.attn.hook_pattern"], cache["hook_embed"], cache["ln_final.hook_scale"]

# %% name and layer
cache["pattern", 1], cache["resid_post", 2], cache["z", 0]

# %% layers counted from the end
cache["resid_post", -1], cache["v", -2]

# %% name, layer and module
cache["q", 1, "attn"], cache["post", 1, "mlp"], cache["scale", 1, "ln1"], cache["normalized", 2, "ln2"]

# %% compact short names
cache["k1"], cache["scale1ln2"], cache["pre2"]

# %% the final norm
cache["scale"], cache["normalized"]

# %% the short name of embeddings
cache["embed"]

# %% the short name of position embeddings @gpt2
cache["pos_embed"]

# %% aliases of names
cache["attn", 1], cache["attn_scores", 0], cache["attn_logits", 0], cache["query", 2], cache["mlp_post", 0]

# %% aliases of layer types
cache["k", 2, "a"], cache["resid_mid", 1, "block"], cache["resid_pre", 1, "b"]

# %% names from `get_act_name`
from transformer_lens.utils import get_act_name

short = ["k", "q", "v", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores", "pre", "post", "mid", "pre_linear",
         "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn", "key", "mlp_pre", "attn_logits"]
[get_act_name(name, 3) for name in short] + [
    get_act_name("k", 6, "a"), get_act_name("pre", 2), get_act_name("embed"), get_act_name("normalized", 27, "ln2"),
    get_act_name("k6"), get_act_name("scale4ln1"), get_act_name("pre5"), get_act_name("scale"),
    get_act_name("hook_embed"), get_act_name("blocks.1.hook_resid_pre"), get_act_name("resid_pre", "*"),
]

# %% a cache as a mapping
len(cache), "blocks.0.hook_resid_pre" in cache.keys(), [name for name in cache][:3], len(list(cache.values()))

# %% iterating over items
{name: tuple(value.shape) for name, value in cache.items()}

# %% the dictionary of a cache
sorted(cache.cache_dict) == sorted(cache.keys()), cache.cache_dict["hook_embed"]

# %% attributes of a cache
cache.model is model or cache.model.cfg.n_layers == model.cfg.n_layers, cache.has_batch_dim

# %% a single activation
_, cache = model.run_with_cache(tokens, names_filter="blocks.1.hook_resid_post")
dict(cache)

# %% activations selected by a list
_, cache = model.run_with_cache(tokens, names_filter=["hook_embed", "blocks.2.attn.hook_z"])
dict(cache)

# %% activations selected by a function
_, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_resid_post"))
dict(cache)

# %% head results
model.set_use_attn_result(True)
_, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_result"))
dict(cache)

# %% separate inputs of queries and keys
model.set_use_split_qkv_input(True)
_, cache = model.run_with_cache(tokens, names_filter=["blocks.1.hook_q_input", "blocks.1.hook_k_input"])
dict(cache)

# %% a dictionary instead of a cache
logits, cache = model.run_with_cache(tokens, return_cache_object=False)
type(cache).__name__, cache["blocks.0.attn.hook_q"]

# %% a cache without the batch axis
logits, cache = model.run_with_cache(tokens[:1], remove_batch_dim=True)
cache["pattern", 0], cache["resid_post", 1], cache.has_batch_dim

# %% removing the batch axis of a cache
_, cache = model.run_with_cache(tokens[:1])
cache.remove_batch_dim()
cache["q", 1], cache.has_batch_dim

# %% slicing the batch axis
first = cache.apply_slice_to_batch_dim(0)
both = cache.apply_slice_to_batch_dim((0, 2))
first["resid_post", 1], first.has_batch_dim, both["q", 0], both.has_batch_dim

# %% the last position of all activations
_, cache = model.run_with_cache(tokens, pos_slice=-1)
cache["resid_post", 1], cache["z", 1], cache["pattern", 1]

# %% a range of positions
_, cache = model.run_with_cache(tokens, pos_slice=(1, 4))
cache["resid_pre", 2], cache["q", 0], cache["pattern", 2]

# %% a list of positions
_, cache = model.run_with_cache(tokens, pos_slice=[0, 3], names_filter=lambda name: "resid" in name)
dict(cache)

# %% gradients of the loss
_, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
cache["blocks.0.hook_resid_pre_grad"], cache["blocks.1.attn.hook_pattern_grad"], cache["hook_embed_grad"]

# %% gradients of selected activations
loss, cache = model.run_with_cache(
    tokens, return_type="loss", incl_bwd=True, names_filter=lambda name: "hook_z" in name)
loss, sorted(cache.keys()), cache["blocks.2.attn.hook_z_grad"]

# %% gradients without the batch axis
_, cache = model.run_with_cache(tokens[:1], return_type="loss", incl_bwd=True, remove_batch_dim=True,
                                names_filter="blocks.1.hook_attn_out")
cache["blocks.1.hook_attn_out_grad"]

# %% a cache on another device
_, cache = model.run_with_cache(tokens, device="cpu", names_filter="hook_embed")
cache["hook_embed"]

# %% moving a cache to a device
cache.to("cpu")["resid_post", 0]

# %% model arguments in `run_with_cache`
loss, cache = model.run_with_cache(tokens, return_type="loss", loss_per_token=True, stop_at_layer=None)
loss, cache["mlp_out", 0]

# %% logits at the last position
logits, cache = model.run_with_cache(tokens, return_type="logits", clear_contexts=True, reset_hooks_end=True)
logits[:, -1, :]

# %% creating a cache
from transformer_lens import ActivationCache

doubled = ActivationCache({name: value * 2 for name, value in cache.items()}, model)
doubled["resid_post", 0], doubled.stack_activation("z").shape if hasattr(doubled, "stack_activation") else None, len(doubled)
# --- jaxlens
from jaxlens import ActivationCache

doubled = ActivationCache({name: value * 2 for name, value in cache.items()}, model)
doubled["resid_post", 0], doubled.stack_activation("z").shape, len(doubled)

# %% an activation stacked over layers
cache.stack_activation("resid_pre"), cache.stack_activation("q", sublayer_type="attn")

# %% activations of the first layers
cache.stack_activation("mlp_out", layer=2), cache.stack_activation("scale", -1, "ln1")

# %% attention patterns without the batch axis
_, cache = model.run_with_cache(tokens[0], remove_batch_dim=True)
[cache["pattern", layer].mean(-1) for layer in range(model.cfg.n_layers)]

# %% storing activations with `add_caching_hooks`
stored = model.add_caching_hooks(names_filter=lambda name: name.endswith("hook_attn_out"))
model(tokens)
dict(stored)

# %% conversion to NumPy
from transformer_lens.utils import to_numpy

to_numpy(cache["pattern", 0]), to_numpy([1, 2]), to_numpy(logits[0, -1])

# %% head results in every cache
model.set_use_attn_result(True)
_, cache = model.run_with_cache(tokens)
cache["result", 1], cache["result", -1, "attn"].shape, model.cfg.use_attn_result

# %% all activations of a layer
_, cache = model.run_with_cache(tokens, names_filter=lambda name: name.startswith("blocks.1."))
list(cache.keys())

# %% all activations of attention
_, cache = model.run_with_cache(tokens, names_filter=lambda name: "attn" in name)
list(cache.keys())

# %% separate inputs in every cache
model.set_use_split_qkv_input(True)
model.set_use_hook_mlp_in(True)
_, cache = model.run_with_cache(tokens)
cache["q_input", 1], cache["blocks.2.hook_mlp_in"], len(cache)

# %% hooks that store activations in a dictionary
stored, fwd_hooks, bwd_hooks = model.get_caching_hooks(names_filter=lambda name: "resid" in name)
with model.hooks(fwd_hooks=fwd_hooks):
    model(tokens)
list(stored), stored["blocks.2.hook_resid_mid"], bwd_hooks

# %% which embeddings a cache contains
cache.has_embed, cache.has_pos_embed

# %% adding an entry to a cache
cache.cache_dict["doubled"] = cache["resid_post", 0] * 2
cache["doubled"], len(cache)
# --- jaxlens
from jaxlens import ActivationCache

cache = ActivationCache({**cache, "doubled": cache["resid_post", 0] * 2}, model)
cache["doubled"], len(cache)

# %% removing the batch axis in an expression
_, cache = model.run_with_cache(tokens[:1])
cache.remove_batch_dim()["pattern", 2]

# %% attention patterns stacked over layers
_, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("pattern"))
cache.stack_activation("pattern").mean((1, 3))

# %% gradients of values
_, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True, names_filter=lambda name: "hook_v" in name)
cache["blocks.0.attn.hook_v_grad"], cache["blocks.2.attn.hook_v"]

"""Activation patching"""

# %% the metric
def logit_diff(logits, answers):
    last = logits[:, -1]
    right, wrong = last[[0, 1], answers[:, 0]], last[[0, 1], answers[:, 1]]
    return (right - wrong).mean()

logit_diff(logits, answers)
# --- jaxlens
def logit_diff(logits, answers):
    last = logits[:, -1]
    rows = jnp.arange(len(last))
    return (last[rows, answers[:, 0]] - last[rows, answers[:, 1]]).mean()

logit_diff(logits, answers)

# %% the residual stream
from transformer_lens import patching

metric = lambda logits: logits[0, -1, 10] - logits[0, -1, 24]
patching.get_act_patch_resid_pre(model, corrupted_tokens, cache, metric)

# %% the residual stream between attention and MLP
from transformer_lens import patching

patching.get_act_patch_resid_mid(model, corrupted_tokens, cache, lambda logits: logits[:, -1, 10].mean())

# %% attention and MLP outputs
import transformer_lens.patching as patching

metric = lambda logits: logits[:, -1, 10].mean()
(patching.get_act_patch_attn_out(model, corrupted_tokens, cache, metric),
 patching.get_act_patch_mlp_out(model, corrupted_tokens, cache, metric))

# %% head outputs
from transformer_lens.patching import get_act_patch_attn_head_out_all_pos, get_act_patch_attn_head_out_by_pos

metric = lambda logits: logits[:, -1, 10].mean()
(get_act_patch_attn_head_out_all_pos(model, corrupted_tokens, cache, metric),
 get_act_patch_attn_head_out_by_pos(model, corrupted_tokens, cache, metric))

# %% queries, keys and values of heads
from transformer_lens import patching

metric = lambda logits: logits[:, -1, 10].mean()
[getattr(patching, f"get_act_patch_attn_head_{what}_all_pos")(model, corrupted_tokens, cache, metric) for what in "qkv"]

# %% queries, keys and values of heads by position
from transformer_lens import patching

metric = lambda logits: logits[:, -1, 10].mean()
[getattr(patching, f"get_act_patch_attn_head_{what}_by_pos")(model, corrupted_tokens, cache, metric) for what in "qkv"]

# %% attention patterns of heads
from transformer_lens import patching

metric = lambda logits: logits[:, -1, 10].mean()
(patching.get_act_patch_attn_head_pattern_all_pos(model, corrupted_tokens, cache, metric),
 patching.get_act_patch_attn_head_pattern_by_pos(model, corrupted_tokens, cache, metric))

# %% single entries of attention patterns
from transformer_lens import patching

short, corrupted = tokens[:, :3], corrupted_tokens[:, 1:4]
_, short_cache = model.run_with_cache(short)
patching.get_act_patch_attn_head_pattern_dest_src_pos(model, corrupted, short_cache, lambda logits: logits[0, -1, 10])

# %% all kinds of head patches
from transformer_lens import patching

patching.get_act_patch_attn_head_all_pos_every(model, corrupted_tokens, cache, lambda logits: logits[0, -1, 10])
# --- definition: TransformerLens cannot stack the results of grouped-query attention. In jaxlens, entries of missing key/value heads are zero
from jaxlens import patching

metric = lambda logits: logits[0, -1, 10]
each = [getattr(patching, f"get_act_patch_attn_head_{what}_all_pos")(model, corrupted_tokens, cache, metric)
        for what in ("out", "q", "k", "v", "pattern")]
jnp.stack([jnp.pad(one, [(0, 0), (0, model.cfg.n_heads - one.shape[1])]) for one in each])

# %% all kinds of head patches, without grouped-query attention @gpt2
from transformer_lens import patching

patching.get_act_patch_attn_head_all_pos_every(model, corrupted_tokens, cache, lambda logits: logits[0, -1, 10])

# %% all kinds of head patches by position @gpt2
from transformer_lens import patching

patching.get_act_patch_attn_head_by_pos_every(model, corrupted_tokens, cache, lambda logits: logits[0, -1, 10])

# %% all kinds of block patches
from transformer_lens import patching

patching.get_act_patch_block_every(model, corrupted_tokens, cache, metric=lambda logits: logits[0, -1, 10])

# %% custom patching
from transformer_lens import patching

patching.generic_activation_patch(
    model, corrupted_tokens, cache, patching_metric=lambda logits: logits[0, -1, 10],
    patch_setter=patching.layer_pos_head_vector_patch_setter, activation_name="z",
    index_axis_names=("layer", "pos", "head"))

# %% patching that returns the table of indices
from transformer_lens import patching

values, table = patching.generic_activation_patch(
    model, corrupted_tokens, cache, lambda logits: logits[0, -1, 10], patching.layer_pos_patch_setter, "resid_post",
    index_axis_names=("layer", "pos"), return_index_df=True)
values, table

# %% patching at given indices
import pandas as pd
from transformer_lens import patching

table = pd.DataFrame([[0, 3], [1, 3], [2, 6]], columns=["layer", "pos"])
patching.generic_activation_patch(
    model, corrupted_tokens, cache, lambda logits: logits[0, -1, 10], patching.layer_pos_patch_setter, "attn_out",
    index_df=table)

# %% a custom setter
from transformer_lens import patching

def set_neuron(corrupted, index, clean):
    layer, neuron = index
    corrupted[..., neuron] = clean[..., neuron]
    return corrupted

import pandas as pd

table = pd.DataFrame([[0, 3], [1, 20], [2, 6]], columns=["layer", "neuron"])
patching.generic_activation_patch(
    model, corrupted_tokens, cache, lambda logits: logits[0, -1, 10], set_neuron, "post", index_df=table)
# --- jaxlens
from jaxlens import patching

def set_neuron(corrupted, index, clean):
    layer, neuron = index
    return corrupted.at[..., neuron].set(clean[..., neuron])

import pandas as pd

table = pd.DataFrame([[0, 3], [1, 20], [2, 6]], columns=["layer", "neuron"])
patching.generic_activation_patch(
    model, corrupted_tokens, cache, lambda logits: logits[0, -1, 10], set_neuron, "post", index_df=table)

# %% all index combinations
from transformer_lens.patching import make_df_from_ranges

make_df_from_ranges([2, 3], ["layer", "head"])

# %% patching by hand, by layer and position
def patch(resid, hook, position):
    resid[:, position] = cache[hook.name][:, position]
    return resid

result = torch.zeros(3, 7)
for layer in range(3):
    for position in range(7):
        hook = (f"blocks.{layer}.hook_resid_pre", partial(patch, position=position))
        result[layer, position] = model.run_with_hooks(corrupted_tokens, fwd_hooks=[hook])[0, -1, 10]
result
# --- jaxlens
def patch(resid, hook, position):
    return resid.at[:, position].set(cache[hook.name][:, position])

result = np.zeros((3, 7), np.float32)
for layer in range(3):
    for position in range(7):
        hook = (f"blocks.{layer}.hook_resid_pre", partial(patch, position=position))
        result[layer, position] = model.run_with_hooks(corrupted_tokens, fwd_hooks=[hook])[0, -1, 10]
result

# %% patching a head by hand @in_place
def patch_head(z, hook, head, clean_cache):
    z[:, :, head] = clean_cache[hook.name][:, :, head]
    return z

model.run_with_hooks(corrupted_tokens, return_type="loss", fwd_hooks=[
    ("blocks.1.attn.hook_z", partial(patch_head, head=2, clean_cache=cache))])
# --- jaxlens
def patch_head(z, hook, head, clean_cache):
    return z.at[:, :, head].set(clean_cache[hook.name][:, :, head])

model.run_with_hooks(corrupted_tokens, return_type="loss", fwd_hooks=[
    ("blocks.1.attn.hook_z", partial(patch_head, head=2, clean_cache=cache))])

# %% patching the whole residual stream restores the clean run
hooks = [("blocks.0.hook_resid_pre", lambda value, hook: cache[hook.name])]
model.run_with_hooks(corrupted_tokens, fwd_hooks=hooks), logits

# %% path patching from a head to the logits
def freeze(value, hook, sender_layer, sender):
    frozen = cache[hook.name].clone()
    if hook.layer() == sender_layer:
        frozen[:, :, sender] = value[:, :, sender]
    return frozen

hooks = [(lambda name: name.endswith("hook_z"), partial(freeze, sender_layer=1, sender=0)),
         (lambda name: name.endswith("hook_mlp_out"), lambda value, hook: cache[hook.name])]
_, changed = model.run_with_cache(corrupted_tokens)
with_sender = [("blocks.1.attn.hook_z", lambda value, hook: changed[hook.name])]
model.run_with_hooks(tokens, fwd_hooks=with_sender + hooks)
# --- jaxlens
def freeze(value, hook, sender_layer, sender):
    frozen = cache[hook.name]
    return frozen.at[:, :, sender].set(value[:, :, sender]) if hook.layer() == sender_layer else frozen

hooks = [(lambda name: name.endswith("hook_z"), partial(freeze, sender_layer=1, sender=0)),
         (lambda name: name.endswith("hook_mlp_out"), lambda value, hook: cache[hook.name])]
_, changed = model.run_with_cache(corrupted_tokens)
with_sender = [("blocks.1.attn.hook_z", lambda value, hook: changed[hook.name])]
model.run_with_hooks(tokens, fwd_hooks=with_sender + hooks)

# %% path patching in three runs, as in ARENA
from transformer_lens import utils

_, corrupted_cache = model.run_with_cache(corrupted_tokens)
sender_layer, sender, receiver_layer = 0, 1, 2

def patch_or_freeze(z, hook):
    clean = cache[hook.name]
    if hook.layer() != sender_layer:
        return clean
    patched = clean.clone()
    patched[:, :, sender] = corrupted_cache[hook.name][:, :, sender]
    return patched

receivers = [utils.get_act_name(which, receiver_layer) for which in "qkv"]
model.add_hook(lambda name: name.endswith("z"), patch_or_freeze)
_, path_cache = model.run_with_cache(tokens, names_filter=receivers, return_type=None)
model.reset_hooks()
model.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: path_cache[hook.name]) for name in receivers])
# --- jaxlens
from jaxlens import utils

_, corrupted_cache = model.run_with_cache(corrupted_tokens)
sender_layer, sender, receiver_layer = 0, 1, 2

def patch_or_freeze(z, hook):
    clean = cache[hook.name]
    if hook.layer() != sender_layer:
        return clean
    return clean.at[:, :, sender].set(corrupted_cache[hook.name][:, :, sender])

receivers = [utils.get_act_name(which, receiver_layer) for which in "qkv"]
model.add_hook(lambda name: name.endswith("z"), patch_or_freeze)
_, path_cache = model.run_with_cache(tokens, names_filter=receivers, return_type=None)
model.reset_hooks()
model.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: path_cache[hook.name]) for name in receivers])

# %% attribution patching
_, corrupted_cache = model.run_with_cache(corrupted_tokens)
gradients = {}
model.add_hook(lambda name: name.endswith("hook_z"), lambda value, hook: gradients.update({hook.name: value}), "bwd")
model(corrupted_tokens)[0, -1, 10].backward()
model.reset_hooks()
names = [f"blocks.{layer}.attn.hook_z" for layer in range(3)]
torch.stack([(gradients[name] * (cache[name] - corrupted_cache[name])).sum(dim=(0, 1, 3)) for name in names])
# --- jaxlens
_, corrupted_cache = model.run_with_cache(corrupted_tokens)
names = [f"blocks.{layer}.attn.hook_z" for layer in range(3)]

def metric(nudges):
    hooks = [(name, lambda value, hook: value + nudges[hook.name]) for name in names]
    return model.run_with_hooks(corrupted_tokens, fwd_hooks=hooks)[0, -1, 10]

gradients = jax.grad(metric)({name: jnp.zeros_like(cache[name]) for name in names})
jnp.stack([(gradients[name] * (cache[name] - corrupted_cache[name])).sum(axis=(0, 1, 3)) for name in names])

# %% patching attention scores
from transformer_lens import patching

patching.generic_activation_patch(
    model, corrupted_tokens, cache, lambda logits: logits[0, -1, 10], patching.layer_head_pattern_patch_setter,
    "attn_scores", index_axis_names=("layer", "head_index"))

# %% patching neurons and the residual stream
from transformer_lens import patching

[patching.generic_activation_patch(
    model, corrupted_tokens, cache, lambda logits: logits[:, -1, 10].mean(), patching.layer_pos_patch_setter, name,
    index_axis_names=["layer", "pos"]) for name in ("pre", "post", "resid_post")]

# %% a normalized metric
from transformer_lens import patching

clean = (logits[0, -1, 10] - logits[0, -1, 24]).item()
corrupted_logits = model(corrupted_tokens)
corrupted = (corrupted_logits[0, -1, 10] - corrupted_logits[0, -1, 24]).item()

def metric(logits):
    return (logits[0, -1, 10] - logits[0, -1, 24] - corrupted) / (clean - corrupted)

patching.get_act_patch_block_every(model, corrupted_tokens, cache, metric)

# %% [markdown]
# # From TransformerLens
#
# **What has to change in code that was written for TransformerLens?**
#
# This notebook does what the Main Demo of TransformerLens does, in the same order: the loss of a text, attention
# patterns, ablation of a head, activation patching, induction heads, weights as factored matrices, direct logit
# attribution, generation. Code that changes has a comment that says why. Everything else only changes its imports.

# %%
from functools import partial

import einops
import jax
import jax.numpy as jnp
import numpy as np

# was: from transformer_lens import …
from jaxlens import FactoredMatrix, HookedTransformer, patching, plot, utils

# was: torch.set_grad_enabled(False). JAX computes gradients only when a function is differentiated.

# %% [markdown]
# ## Load a model
#
# The names of TransformerLens load the same models: `from_pretrained("gpt2-small")`. This one is installed as a
# Python package, so the notebook runs offline.

# %%
model = HookedTransformer.from_pretrained("smollm2-135m-instruct")
print(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model, model.cfg.normalization_type)

# %%
description = """The sun rises in the east and sets in the west. At night, the moon and the stars light up the sky. In
the morning, the sun rises again in the east."""
loss = model(description, return_type="loss")
print(f"loss: {loss:.3f}")
assert 1 < loss < 4

# %% [markdown]
# ## Cache all activations
#
# `remove_batch_dim=True` works as before. Attention patterns are drawn by `jaxlens.plot`, with the argument names of
# CircuitsVis.

# %%
text_tokens = model.to_tokens(description)
logits, cache = model.run_with_cache(text_tokens, remove_batch_dim=True)
pattern = cache["pattern", 0, "attn"]
print(pattern.shape, text_tokens.shape)

# %%
plot.attention_patterns(tokens=model.to_str_tokens(description)[:20], attention=pattern[:, :20, :20])

# %% [markdown]
# ## Ablate a head
#
# The hook below is the one real change: arrays are immutable, so a hook returns a new array. `value[:, :, head] = 0`
# raises an error that says so.

# %%
layer_to_ablate, head_to_ablate = 0, 2


def head_ablation_hook(value, hook):
    # was: value[:, :, head_to_ablate, :] = 0.0; return value
    return value.at[:, :, head_to_ablate, :].set(0.0)


name = utils.get_act_name("z", layer_to_ablate)  # the demo edits "v", which the heads of a group share in this model
ablated = model.run_with_hooks(text_tokens, return_type="loss", fwd_hooks=[(name, head_ablation_hook)])
print(f"loss: {loss:.3f}, without head {layer_to_ablate}.{head_to_ablate}: {ablated:.3f}")
assert ablated > loss

# %%
try:
    model.run_with_hooks(text_tokens, fwd_hooks=[(name, lambda value, hook: value.__setitem__(0, 0.0))])
except TypeError as error:
    print(f"{error}\n{error.__notes__[0]}")

# %% [markdown]
# ## Activation patching
#
# Patch the residual stream of a clean run into a corrupted one, at each layer and position. The demo loops over runs.
# The loop works here too, and `jaxlens.patching` does the same in one compiled sweep.

# %%
clean_prompt = "When John and Mary went to the shops, John gave the bag to"
corrupted_prompt = "When John and Mary went to the shops, Mary gave the bag to"
clean_tokens, corrupted_tokens = model.to_tokens(clean_prompt), model.to_tokens(corrupted_prompt)
answer, wrong = model.to_single_token(" Mary"), model.to_single_token(" John")


def logits_to_logit_diff(logits):
    return logits[0, -1, answer] - logits[0, -1, wrong]


clean_logits, clean_cache = model.run_with_cache(clean_tokens)
clean_diff, corrupted_diff = logits_to_logit_diff(clean_logits), logits_to_logit_diff(model(corrupted_tokens))
print(f"clean {clean_diff:.3f}, corrupted {corrupted_diff:.3f}")
assert clean_diff > 0 > corrupted_diff


def residual_stream_patching_hook(resid_pre, hook, position):
    # was: resid_pre[:, position, :] = clean_cache[hook.name][:, position, :]; return resid_pre
    return resid_pre.at[:, position, :].set(clean_cache[hook.name][:, position, :])


hook_fn = partial(residual_stream_patching_hook, position=10)
hooks = [(utils.get_act_name("resid_pre", 12), hook_fn)]
by_loop = (logits_to_logit_diff(model.run_with_hooks(corrupted_tokens, fwd_hooks=hooks)) - corrupted_diff) / (
    clean_diff - corrupted_diff
)

# %%
def metric(logits):
    return (logits_to_logit_diff(logits) - corrupted_diff) / (clean_diff - corrupted_diff)


patched = patching.get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, metric)
assert abs(patched[12, 10] - by_loop) < 1e-4
plot.heatmap(
    patched, xlabels=model.to_str_tokens(clean_prompt), xname="position", yname="layer", unit="share recovered",
    title="The clean residual stream patched into the corrupted run",
)

# %% [markdown]
# ## Induction heads
#
# Random tokens, repeated: an induction head attends from a token to the one after its earlier occurrence. Its score is
# the mean of a diagonal of the pattern.

# %%
batch_size, seq_len = 2, 40
# was: torch.randint(1000, 10000, (batch_size, seq_len)). Random numbers come from a key.
random_tokens = jax.random.randint(jax.random.key(0), (batch_size, seq_len), 1000, 10000)
repeated_tokens = einops.repeat(random_tokens, "batch seq_len -> batch (2 seq_len)")
induction_scores = np.zeros((model.cfg.n_layers, model.cfg.n_heads))


def induction_score_hook(pattern, hook):
    # was: pattern.diagonal(dim1=-2, dim2=-1, offset=1 - seq_len), and a store on the device of the model
    stripe = pattern.diagonal(axis1=-2, axis2=-1, offset=1 - seq_len)
    induction_scores[hook.layer()] = einops.reduce(stripe, "batch head position -> head", "mean")


def pattern_filter(name):
    return name.endswith("pattern")


model.run_with_hooks(repeated_tokens, return_type=None, fwd_hooks=[(pattern_filter, induction_score_hook)])
layer, head = np.unravel_index(induction_scores.argmax(), induction_scores.shape)
print(f"strongest: {layer}.{head} with {induction_scores.max():.2f}; {(induction_scores > 0.4).sum()} heads above 0.4")
assert induction_scores.max() > 0.5

# %%
plot.heatmap(induction_scores, xname="head", yname="layer", title="Induction score")

# %% [markdown]
# ## Weights
#
# Weights have the same names and shapes, stacked over layers. In a model with grouped-query attention, `W_K` and `W_V`
# have a key/value head for each query head, also as in TransformerLens. `FactoredMatrix` multiplies without multiplying
# out.

# %%
print(model.W_E.shape, model.W_Q.shape, model.W_out.shape, model.blocks[0].attn.W_Q.shape)
OV_circuit = model.OV[layer, head]
assert isinstance(OV_circuit, FactoredMatrix)
full_OV = model.W_E[:2000] @ OV_circuit @ model.W_U[:, :2000]  # the first tokens; the whole is 49,152 squared
product = (model.W_E[:2000] @ model.W_V[layer, head] @ model.W_O[layer, head] @ model.W_U[:, :2000])
assert jnp.abs(full_OV.AB - product).max() < 1e-4 * jnp.abs(product).max()
rank = (full_OV.AB.diagonal()[:, None] < full_OV.AB).sum(-1)  # of each token's own logit
print(f"head {layer}.{head}: the median rank of a token's own logit is {int(jnp.median(rank))} of 2,000")

# %% [markdown]
# ## Direct logit attribution
#
# The residual stream is the sum of what the components wrote, so the logit difference is too.

# %%
per_head, labels = clean_cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
contributions = clean_cache.logit_attrs(per_head, tokens=answer, incorrect_tokens=wrong, pos_slice=-1)[:, 0]
components, _ = clean_cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=-1, return_labels=True)
total = clean_cache.logit_attrs(components, tokens=answer, incorrect_tokens=wrong, pos_slice=-1)[:, 0].sum()
print(f"sum of all components: {total:.3f}, logit difference {clean_diff:.3f}")
assert abs(total - clean_diff) < 1e-3 * abs(clean_diff)
plot.bars(contributions, labels, count=10, unit="logits", title="What each head adds to Mary − John")

# %% [markdown]
# ## Generate
#
# `generate` has the arguments of TransformerLens. The loop is one compiled program with a KV cache.

# %%
print(model.generate("The capital of France is", max_new_tokens=12, do_sample=False, verbose=False))

# %% [markdown]
# ## Gradients
#
# This is the other real change. `loss.backward()` and `tensor.grad` do not exist, because JAX differentiates functions.
# The gradients of a loss at every hook point are in a cache.

# %%
_, gradients = model.run_with_cache(
    description, return_type="loss", incl_bwd=True, names_filter="blocks.12.hook_resid_post"
)
print({name: value.shape for name, value in gradients.items()})
assert "blocks.12.hook_resid_post_grad" in gradients

# %% [markdown]
# ## Try this next
#
# - Port a notebook of your own: replace `transformer_lens` by `jaxlens` in the imports and run it. Errors say what to
#   change; [docs/coming_from_transformerlens.md](../docs/coming_from_transformerlens.md) lists them.
# - Replace the hook of the patching loop by `hook(fn, **data)`, and map over positions with `jax.vmap`:
#   [notebook 01](01_main_tour.ipynb) shows how.
# - Load `from_pretrained_no_processing` and repeat the attribution. It works with raw weights too.

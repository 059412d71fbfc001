# %% [markdown]
# # Main tour
#
# **Which parts of TransformerLens work the same here, and what does JAX add?**
#
# The names of weights, hook points and cache methods are those of TransformerLens. The first half of this notebook
# loads a model, reads its activations, edits them and generates text. The second half applies `jit`, `vmap` and
# `grad` to code with hooks.

# %%
import jax
import jax.numpy as jnp

from jaxlens import HookedTransformer, hook, plot

model = HookedTransformer.from_pretrained("smollm2-135m-instruct")
model

# %% [markdown]
# ## Run, and read activations
#
# `run_with_cache` returns logits and an `ActivationCache`. A text becomes tokens with BOS in front, if the model was
# trained with one.

# %%
prompt = "When John and Mary went to the shops, John gave the bag to"
mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")
logits, cache = model.run_with_cache(prompt)

likeliest = model.to_single_str_token(int(logits[0, -1].argmax()))
assert likeliest == " Mary"
print(repr(likeliest), cache["resid_post", 5].shape, cache["blocks.23.attn.hook_pattern"].shape)

# %% [markdown]
# In heads 20.0 and 23.3, the last token attends most to the second John, the giver. In a live notebook, pictures react
# to mouse and keyboard.

# %%
giver = 10
assert model.to_str_tokens(prompt)[giver] == " John"
assert all(cache["pattern", layer][0, head, -1].argmax() == giver for layer, head in [(20, 0), (23, 3)])
plot.attention_patterns(cache, prompt, heads=[(20, 0), (23, 3), (29, 1)])


# %% [markdown]
# ## Edit activations
#
# A hook receives an activation and returns a new one. JAX arrays cannot be assigned to, so the one line of a
# TransformerLens hook that changes is `z[:, :, 3] = 0`. A hook that returns None changes nothing.

# %%
def difference(logits):
    """By how much the logit of Mary exceeds that of John, at the last position."""
    return logits[..., -1, mary] - logits[..., -1, john]


def ablate(z, hook):
    return z.at[:, :, 3].set(0.0)


whole = float(difference(logits)[0])
without = float(difference(model.run_with_hooks(prompt, fwd_hooks=[("blocks.23.attn.hook_z", ablate)]))[0])
assert 0 < without < 0.7 * whole
print(f"logit difference: {whole:.2f}, without head 23.3: {without:.2f}")

# %% [markdown]
# No `set_use_*` switch is needed: naming `hook_result`, or any other hook point of
# [docs/hook_points.md](../docs/hook_points.md), is enough. A name that matches no hook point is an error.

# %%
per_head = model.run_with_cache(prompt, names_filter="blocks.23.attn.hook_result")[1]["result", 23]
per_head.shape  # [batch pos head d_model]

# %%
try:
    model.run_with_hooks(prompt, fwd_hooks=[("blocks.23.attn.hook_zz", ablate)])
except Exception as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# ## Generate
#
# `generate` is one compiled loop with a KV cache. Hooks act at every step of it. Without head 23.3, Mary is still the
# likeliest name.

# %%
for hooks in ([], [("blocks.23.attn.hook_z", ablate)]):
    text = model.generate(prompt, 8, do_sample=False, verbose=False, fwd_hooks=hooks)
    assert text.removeprefix(prompt).startswith(" Mary")
    print(repr(text))

# %% [markdown]
# # What is new
#
# ## A new hook compiles nothing
#
# The layers before and after a hook run in compiled loops, and your function runs between two compiled steps. So a
# notebook cell with a changed hook runs at once. Here, each hook is a new function at another layer.

# %%
programs = 0


def count(event, seconds, **details):
    global programs
    programs += event.endswith("/backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(count)
changes = []
for layer in (5, 20, 29):
    edited = model.run_with_hooks(prompt, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", lambda z, hook: 0.5 * z)])
    changes.append(float(difference(edited)[0]) - whole)
jax.monitoring.unregister_event_duration_listener(count)

assert programs <= 1  # the product 0.5 * z itself
print(f"{programs} program compiled; changes of the logit difference: {[round(change, 2) for change in changes]}")


# %% [markdown]
# ## `jit`: hooks inside your own program
#
# `hook(fn, **data)` is a hook with data. A model and the data are pytrees, so both are arguments of a jitted function.
# The function below scales every head in every layer. Its mask has the shape [layer, head].

# %%
def scale_heads(z, hook, mask):
    return z * mask[hook.layer()][:, None]


@jax.jit
def masked(mask, model, tokens):
    """The logit difference if the output of each head is multiplied by its entry of the mask."""
    hooks = [("blocks.*.attn.hook_z", hook(scale_heads, mask=mask))]
    return difference(model.run_with_hooks(tokens, fwd_hooks=hooks))[0]


tokens = model.to_tokens(prompt)
ones = jnp.ones((model.cfg.n_layers, model.cfg.n_heads))
assert abs(masked(ones, model, tokens) - whole) < 1e-4
assert abs(masked(ones.at[23, 3].set(0), model, tokens) - without) < 1e-4

# %% [markdown]
# ## `vmap`: many interventions in one program
#
# Nine masks, each of which removes another head of layer 23. They run as one batch. Nothing in `masked` changed.

# %%
masks = jnp.stack([ones.at[23, head].set(0) for head in range(model.cfg.n_heads)])
removed = jax.vmap(masked, in_axes=(0, None, None))(masks, model, tokens)
assert int(removed.argmin()) == 3 and abs(removed[3] - without) < 1e-4
plot.bars(removed - whole, [f"23.{head}" for head in range(9)], unit="logits", title="Removing each head of layer 23")

# %% [markdown]
# ## `grad`: all interventions at once, to first order
#
# The derivative with respect to the mask estimates what each of the 270 heads adds to the logit difference, with one
# backward pass. It is negative for heads that work against the answer.

# %%
gradient = jax.grad(masked)(ones, model, tokens)
assert gradient.size == 270
plot.heatmap(gradient, xname="head", yname="layer", unit="logits", title="Derivative by the mask")

# %% [markdown]
# The estimate is good if the effect is nearly linear in the mask. In layer 23, it nearly equals the exact effect.
# [Notebook 03](03_attribution_patching.ipynb) shows where first-order estimates fail.

# %%
exact = whole - removed
correlation = float(jnp.corrcoef(gradient[23], exact)[0, 1])
assert correlation > 0.9 and int(gradient[23].argmax()) == int(exact.argmax()) == 3
plot.lines(
    jnp.stack([exact, gradient[23]]), names=["removed", "derivative"], xname="head", unit="logits",
    title=f"Effect of the heads of layer 23 (correlation {correlation:.2f})",
)

# %% [markdown]
# ## All three together
#
# Transformations compose. This is the derivative for each of four prompts: `vmap` of `grad`, in one program. The head
# with the largest derivative is the same in all of them. [Notebook 02](02_indirect_object.ipynb) finds out what it
# does.

# %%
places = ("shops", "park", "school", "house")
prompts = [f"When John and Mary went to the {place}, John gave the bag to" for place in places]
batch = model.to_tokens(prompts)
gradients = jax.jit(jax.vmap(jax.grad(masked), in_axes=(None, None, 0)))(ones, model, batch[:, None])
assert gradients.shape == (4, 30, 9)

strongest = [divmod(int(row.ravel().argmax()), 9) for row in gradients]
assert strongest == [(23, 3)] * 4
strongest

# %% [markdown]
# ## Try this next
#
# - Replace `scale_heads` by a hook that adds a vector to `hook_resid_post`, and take the gradient with respect to it.
#   [Notebook 06](06_steering.ipynb) steers a generation in this way.
# - Optimize the mask: minimize `(masked(mask) - whole)² + λ · mask.sum()` with optax. Which heads survive?
# - Take `jax.hessian` of `masked` with respect to nine entries of the mask. Its off-diagonal entries say which heads
#   interact.
# - Read [docs/coming_from_transformerlens.md](../docs/coming_from_transformerlens.md) before you port your own code.

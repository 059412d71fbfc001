# %% [markdown]
# # Many devices
#
# **Does an experiment change when the model is divided over several devices?**
#
# No: the calls are the same, and the results differ by rounding only. This notebook runs on eight CPU devices, which
# JAX makes from one CPU, so it shows where arrays are, not how fast they are computed. On a machine with GPUs or TPUs,
# leave out the line with XLA_FLAGS, and set the size of the mesh.

# %%
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"  # before JAX

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens import HookedTransformer, hook, plot
from jaxlens.sharding import default_mesh

assert len(jax.devices()) == 8

# %% [markdown]
# ## A mesh, and a model on it
#
# The mesh has two groups of devices for different prompts (`data`), and three devices in each that share the model
# (`model`). SmolLM2 has nine heads and three key/value heads, so three devices divide them evenly. It uses six of the
# eight devices. Every device reads only its part of the checkpoint.

# %%
mesh = default_mesh(n_data=2, n_model=3, devices=jax.devices()[:6])
model = HookedTransformer.from_pretrained("smollm2-135m-instruct", mesh=mesh)
single = HookedTransformer.from_pretrained("smollm2-135m-instruct")
print(model.processing[-1])

# %%
total = sum(weight.size for weight in jax.tree.leaves(model.params))
held = [0] * 6
for weight in jax.tree.leaves(model.params):
    for part in weight.addressable_shards:
        held[part.device.id] += part.data.size
print(f"{total:,} weights; the devices hold {[f'{share / total:.1%}' for share in held]}")
assert max(held) < 0.34 * total
W_Q = model.params["blocks.*.attn.W_Q"]
print("W_Q [layer, head, d_model, d_head]:", W_Q.shape, "on each device", W_Q.addressable_shards[0].data.shape)

# %% [markdown]
# ## The same experiment
#
# A hook sees whole activations, with all heads and prompts, wherever their parts are.

# %%
prompts = [f"When John and Mary went to the shops, {giver} gave the bag to" for giver in ("John", "Mary")]
mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")
signs = np.array([1.0, -1.0])


def difference(logits):
    return np.asarray(logits[:, -1, mary] - logits[:, -1, john]) * signs


seen = {}


def ablate(z, hook):
    seen[hook.name] = z.shape
    return z.at[:, :, 3].set(0.0)


hooks = [("blocks.23.attn.hook_z", ablate)]
results = {
    label: (difference(each(prompts)), difference(each.run_with_hooks(prompts, fwd_hooks=hooks)))
    for label, each in (("six devices", model), ("one device", single))
}
for label, (whole, without) in results.items():
    print(f"{label}: logit difference {whole.round(3)}, without head 23.3 {without.round(3)}")
np.testing.assert_allclose(results["six devices"], results["one device"], atol=1e-3)
assert seen["blocks.23.attn.hook_z"] == (2, 15, 9, 64)

# %% [markdown]
# ## Where an activation is
#
# The cache holds arrays that are divided like the computation. Here, the number in a cell is the device that holds the
# pattern of a head for a prompt.

# %%
_, cache = model.run_with_cache(prompts, names_filter="blocks.23.attn.hook_pattern")
pattern = cache["pattern", 23]
owner = np.full(pattern.shape[:2], -1)
for part in pattern.addressable_shards:
    owner[part.index[:2]] = part.device.id
print(pattern.shape, owner.tolist())
assert len(set(owner.ravel().tolist())) > 1
plot.heatmap(owner + 1, xname="head", yname="prompt", title="Device (from 1) of the attention pattern of layer 23")

# %% [markdown]
# ## What the devices send each other
#
# XLA divides the computation, and adds what the devices of a group exchange. In your own `jit`, the compiled program
# shows it. A layer needs two sums over devices: after attention and after the MLP. Layers are a loop, so they are in
# the program once. The embedding needs one more, because its rows are divided too.

# %%
tokens = model.sharding.place_batch(model.to_tokens(prompts))
program = jax.jit(lambda model, tokens: model(tokens)).lower(model, tokens).compile().as_text()
counts = {kind: program.count(f" {kind}(") for kind in ("all-reduce", "all-gather", "all-to-all")}
print(counts)
assert counts["all-reduce"] == 3 and counts["all-to-all"] == 0

# %% [markdown]
# ## Gradients and generation
#
# Here is the derivative of the logit difference with respect to a factor on each head. The factors are data of a hook,
# on every device, and the heads are divided.


# %%
def scale_heads(z, hook, mask):
    return z * mask[hook.layer()][:, None]


@jax.jit
def total_difference(mask, model, tokens):
    logits = model.run_with_hooks(tokens, fwd_hooks=[("blocks.*.attn.hook_z", hook(scale_heads, mask=mask))])
    return (signs * (logits[:, -1, mary] - logits[:, -1, john])).mean()


ones = jnp.ones((30, 9))
gradients = [
    np.asarray(jax.grad(total_difference)(ones, each, each.to_tokens(prompts))) for each in (model, single)
]
np.testing.assert_allclose(*gradients, atol=1e-3 * np.abs(gradients[1]).max())
plot.heatmap(gradients[0], xname="head", yname="layer", unit="logits", title="Derivative for each head, on six devices")

# %%
texts = [each.generate("The capital of France is", 6, do_sample=False, verbose=False) for each in (model, single)]
print(texts[0])
assert texts[0] == texts[1]

# %% [markdown]
# ## Try this next
#
# - Use all eight devices: `default_mesh(n_data=2, n_model=4)`. What does `model.processing[-1]` say about the heads?
# - Divide the weights over `data` too, so that no two devices hold the same: `rules=DEFAULT_RULES | {"d": "data"}`. How
#   many sums and gathers does the program have then?
# - Run `activation_patch` on both models. Its result is a whole array in every process.
# - Several hosts run the same program: [docs/devices.md](../docs/devices.md).

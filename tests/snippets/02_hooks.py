"""Hooks"""

# %% zero-ablating a head @in_place
def ablate(z, hook):
    z[:, :, 1] = 0.0
    return z

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", ablate)])
# --- jaxlens
def ablate(z, hook):
    return z.at[:, :, 1].set(0.0)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", ablate)])

# %% an edit in place without a return value @in_place
def ablate(z, hook):
    z[:, :, 0, :] = 0

model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", ablate)])
# --- jaxlens
def ablate(z, hook):
    return z.at[:, :, 0, :].set(0)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", ablate)])

# %% adding in place @in_place
def steer(resid, hook):
    resid[:, -1] += 0.5

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", steer)])
# --- jaxlens
def steer(resid, hook):
    return resid.at[:, -1].add(0.5)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", steer)])

# %% adding to a whole activation in place @in_place
def steer(resid, hook):
    resid += 0.25

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", steer)])
# --- jaxlens
def steer(resid, hook):
    return resid + 0.25

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", steer)])

# %% scaling heads in place @in_place
def damp(z, hook, heads):
    z[:, :, heads] *= 0.5
    return z

model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.attn.hook_z", partial(damp, heads=[0, 2]))])
# --- jaxlens
def damp(z, hook, heads):
    return z.at[:, :, np.array(heads)].multiply(0.5)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.attn.hook_z", partial(damp, heads=[0, 2]))])

# %% a hook that returns a new value
model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_mlp_out", lambda mlp_out, hook: mlp_out * 2)])

# %% a hook without a return value
seen = []

def look(resid, hook):
    seen.append(tuple(resid.shape))

model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.hook_resid_post", look)])
seen

# %% storing an activation from a hook
stored = {}

def store(pattern, hook):
    stored[hook.name] = pattern

model.run_with_hooks(tokens, return_type=None, fwd_hooks=[("blocks.1.attn.hook_pattern", store)])
stored

# %% storing in the context of a hook point
def store(value, hook):
    hook.ctx["norm"] = (value**2).sum()

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_attn_out", store)])
model.hook_dict["blocks.1.hook_attn_out"].ctx["norm"]

# %% a context shared by two runs
def store(value, hook):
    hook.ctx["clean"] = value

def patch(value, hook):
    return hook.ctx["clean"]

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_post", store)])
model.run_with_hooks(corrupted_tokens, fwd_hooks=[("blocks.1.hook_resid_post", patch)])

# %% clearing contexts
def store(value, hook):
    hook.ctx["clean"] = 1

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_post", store)], clear_contexts=True)
dict(model.hook_dict["blocks.1.hook_resid_post"].ctx)

# %% hooks selected by a function of the name
model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_mlp_out"), lambda value, hook: value * 0)])

# %% a hook in every layer, selected by a function
layers = []

def mark(value, hook):
    layers.append(hook.layer())
    return value

model.run_with_hooks(tokens, fwd_hooks=[(lambda name: "resid_post" in name, mark)])
layers

# %% mean ablation
def mean_ablate(z, hook):
    return z.mean(dim=(0, 1), keepdim=True).expand(z.shape)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", mean_ablate)])
# --- jaxlens
def mean_ablate(z, hook):
    return jnp.broadcast_to(z.mean(axis=(0, 1), keepdims=True), z.shape)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", mean_ablate)])

# %% replacing an attention pattern
def uniform(pattern, hook):
    n = pattern.shape[-1]
    return (torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]).expand(pattern.shape)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", uniform)])
# --- jaxlens
def uniform(pattern, hook):
    n = pattern.shape[-1]
    return jnp.broadcast_to(jnp.tril(jnp.ones((n, n))) / jnp.arange(1, n + 1)[:, None], pattern.shape)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", uniform)])

# %% knocking out attention from one position to another @in_place
def knock_out(scores, hook):
    scores[:, :, -1, 2] = -1e5
    return scores

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_attn_scores", knock_out)])
# --- jaxlens
def knock_out(scores, hook):
    return scores.at[:, :, -1, 2].set(-1e5)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_attn_scores", knock_out)])

# %% a partial as a hook
def scale_head(z, hook, head, factor):
    scale = np.ones(z.shape[2], np.float32)
    scale[head] = factor
    return z * torch.tensor(scale)[:, None]

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", partial(scale_head, head=2, factor=3.0))])
# --- jaxlens
def scale_head(z, hook, head, factor):
    return z.at[:, :, head].multiply(factor)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", partial(scale_head, head=2, factor=3.0))])

# %% a partial with an argument before `hook`
def scale(value, factor, hook):
    return value * factor

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_attn_out", partial(scale, factor=2.0))])

# %% a partial with an array
def add_vector(resid, hook, vector):
    return resid + vector

direction = model.W_U[:, 10] - model.W_U[:, 24]
model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.hook_resid_pre", partial(add_vector, vector=direction))])

# %% several hooks on a hook point, in order
double = lambda value, hook: value * 2
add_one = lambda value, hook: value + 1
name = "blocks.1.hook_resid_pre"
model.run_with_hooks(tokens, fwd_hooks=[(name, double), (name, add_one)])

# %% hooks in several layers
hooks = [(f"blocks.{layer}.hook_mlp_out", lambda value, hook: value * 0.5) for layer in range(model.cfg.n_layers)]
model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks)

# %% a hook name from `get_act_name`
from transformer_lens import utils

model.run_with_hooks(tokens, fwd_hooks=[(utils.get_act_name("resid_mid", 1), lambda value, hook: value * 1.5)])

# %% a hook on the embedding
model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda value, hook: value + 0.1)])

# %% a hook on the position embedding @gpt2
model.run_with_hooks(tokens, fwd_hooks=[("hook_pos_embed", lambda value, hook: value * 0)])

# %% a hook on the scale of the final norm
model.run_with_hooks(tokens, fwd_hooks=[("ln_final.hook_scale", lambda scale, hook: scale * 2)])

# %% a hook on keys @llama
model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_k", lambda k, hook: k * 0.5)])

# %% a hook on rotated queries @llama
model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.attn.hook_rot_q", lambda q, hook: q + 0.1)])

# %% a hook on the gate @llama
model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.mlp.hook_pre", lambda gate, hook: gate * 0.3)])

# %% a hook on the up projection @llama
model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.mlp.hook_pre_linear", lambda up, hook: up * 0.3)])

# %% zero-ablating a neuron @in_place
def ablate_neuron(neurons, hook):
    neurons[..., 5] = 0
    return neurons

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.mlp.hook_post", ablate_neuron)])
# --- jaxlens
def ablate_neuron(neurons, hook):
    return neurons.at[..., 5].set(0)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.mlp.hook_post", ablate_neuron)])

# %% hooks in a `with` block
with model.hooks(fwd_hooks=[("blocks.0.hook_attn_out", lambda value, hook: value * 0)]):
    inside = model(tokens, return_type="loss")
inside, model(tokens, return_type="loss")

# %% hooks in nested `with` blocks
with model.hooks(fwd_hooks=[("hook_embed", lambda value, hook: value * 2)]):
    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: value * 0)]):
        two = model(tokens, return_type="loss")
    one = model(tokens, return_type="loss")
two, one, model(tokens, return_type="loss")

# %% a cache in a `with` block
with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: value * 2)]) as hooked:
    _, changed = hooked.run_with_cache(tokens)
changed["resid_post", 0], changed["resid_post", -1]

# %% adding and resetting hooks
model.add_hook("blocks.1.hook_resid_pre", lambda value, hook: value + 1)
with_hook = model(tokens, return_type="loss")
model.reset_hooks()
with_hook, model(tokens, return_type="loss")

# %% keeping hooks after a run
model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda value, hook: value * 2)], reset_hooks_end=False)
after = model(tokens, return_type="loss")
model.reset_hooks()
after, model(tokens, return_type="loss")

# %% adding hooks selected by a function of the name
model.add_hook(lambda name: name.endswith("resid_mid"), lambda value, hook: value * 1.1)
model(tokens)

# %% permanent hooks
model.add_perma_hook("hook_embed", lambda value, hook: value * 0.5)
model.reset_hooks()
kept = model(tokens, return_type="loss")
model.reset_hooks(including_permanent=True)
kept, model(tokens, return_type="loss")

# %% adding a hook before existing hooks
name = "blocks.1.hook_resid_pre"
model.add_hook(name, lambda value, hook: value * 2)
model.add_hook(name, lambda value, hook: value + 1, prepend=True)
model(tokens)

# %% removing forward or backward hooks
model.add_hook("hook_embed", lambda value, hook: value * 2, dir="fwd")
model.reset_hooks(direction="bwd")
kept = model(tokens, return_type="loss")
model.remove_all_hook_fns(direction="fwd")
kept, model(tokens, return_type="loss")

# %% listing hooks
model.add_hook("hook_embed", lambda value, hook: None)
model.add_hook("blocks.1.hook_resid_pre", lambda value, hook: None)
{name: len(hooks) for name, hooks in model.list_hooks().items()}

# %% listing hooks of selected hook points
model.add_hook("hook_embed", lambda value, hook: None)
model.add_perma_hook("blocks.1.hook_resid_pre", lambda value, hook: None)
by_name = model.list_hooks(name_filter=["hook_embed"])
by_filter = model.list_hooks(name_filter=lambda name: name.startswith("blocks"), dir="fwd")
list(by_name), list(by_filter), list(model.list_hooks(including_permanent=False))

# %% whether a hook point has hooks
point = model.hook_dict["hook_embed"]
before = point.has_hooks()
model.add_hook("hook_embed", lambda value, hook: value)
before, point.has_hooks(), point.has_hooks(dir="bwd"), len(point.fwd_hooks)

# %% adding a hook to a hook point
model.hook_dict["blocks.0.hook_mlp_out"].add_hook(lambda value, hook: value * 0)
edited = model(tokens, return_type="loss")
model.hook_dict["blocks.0.hook_mlp_out"].remove_hooks()
edited, model(tokens, return_type="loss")

# %% hook points as attributes of the model
model.blocks[0].attn.hook_z.add_hook(lambda value, hook: value * 0)
edited = model(tokens, return_type="loss")
model.reset_hooks()
edited, model.blocks[0].attn.hook_z.name, model.hook_embed.name, model.blocks[2].hook_resid_post.layer()

# %% name and layer of a hook point
point = model.hook_dict["blocks.2.attn.hook_pattern"]
point.name, point.layer()

# %% all hook points of a layer @gpt2
sorted(name for name in model.hook_dict if name.startswith("blocks.1."))

# %% iterating over hook points
[point.name for point in model.hook_points() if point.name.endswith("resid_post")]

# %% modules by name
model.mod_dict["blocks.1.hook_resid_mid"].name

# %% zero-ablating the result of a head @in_place
model.set_use_attn_result(True)
def ablate(result, hook):
    result[:, :, 1] = 0.0
    return result

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_result", ablate)])
# --- jaxlens
def ablate(result, hook):
    return result.at[:, :, 1].set(0.0)

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_result", ablate)])

# %% separate inputs of queries, keys and values
model.set_use_split_qkv_input(True)
model.run_with_hooks(tokens, fwd_hooks=[
    ("blocks.1.hook_q_input", lambda value, hook: value * 2),
    ("blocks.1.hook_v_input", lambda value, hook: value + 1),
])

# %% the input of the MLP
model.set_use_hook_mlp_in(True)
model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.hook_mlp_in", lambda value, hook: value * 2)])

# %% the input of attention @gpt2
model.set_use_attn_in(True)
model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_attn_in", lambda value, hook: value * 0.5)])

# %% the gradient at a hook point
name, seen = "blocks.1.hook_resid_pre", {}

def keep(gradient, hook):
    seen[hook.name] = gradient

model.add_hook(name, keep, "bwd")
model(tokens, return_type="loss").backward()
seen[name]
# --- jaxlens
_, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
cache["blocks.1.hook_resid_pre_grad"]

# %% a backward hook that changes gradients
def stop(gradient, hook):
    return (gradient * 0,)

model.add_hook("blocks.1.hook_mlp_out", stop, "bwd")
model(tokens, return_type="loss").backward()
model.W_E.grad if hasattr(model.W_E, "grad") and model.W_E.grad is not None else model.embed.W_E.grad
# --- jaxlens
def stop(gradient, hook):
    return gradient * 0

def loss(params):
    return model.with_params(params).run_with_hooks(
        tokens, return_type="loss", bwd_hooks=[("blocks.1.hook_mlp_out", stop)])

jax.grad(loss)(model.params)["embed.W_E"]

# %% a hook on every hook point
names = set()
model.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, lambda value, hook: names.add(hook.name))])
sorted(names)

# %% scaling all activations of MLPs
model.run_with_hooks(tokens, fwd_hooks=[(lambda name: "mlp" in name, lambda value, hook: value * 1.5)])

# %% a class as a hook
class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, value, hook):
        return value * self.factor

model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_mlp_out", Scale(0.5))])

# %% a method as a hook
class Recorder:
    def __init__(self):
        self.seen = {}

    def record(self, value, hook):
        self.seen[hook.name] = value.shape[-1]

recorder = Recorder()
model.run_with_hooks(tokens, fwd_hooks=[(lambda name: "hook_q" in name, recorder.record)])
recorder.seen

# %% a hook with a default argument
for layer in range(2):
    model.add_hook(f"blocks.{layer}.hook_attn_out", lambda value, hook, factor=layer: value * factor)
model(tokens)

# %% a hook with `hook` as a keyword-only argument
def scale(value, *, hook):
    return value * (hook.layer() + 1)

model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("attn_out"), scale)])

# %% handles of hooks
def double(value, hook):
    return value * 2

model.add_hook("hook_embed", double, is_permanent=True, level=1)
handle = model.list_hooks()["hook_embed"][0]
handle.user_hook is double, handle.is_permanent, handle.context_level

# %% removing the hooks of a level
model.add_hook("hook_embed", lambda value, hook: value * 2, level=1)
model.add_hook("hook_embed", lambda value, hook: value + 1, level=2)
model.reset_hooks(level=1)
model(tokens, return_type="loss"), len(model.list_hooks()["hook_embed"])

# %% keys and values per query head @llama
model.set_ungroup_grouped_query_attention(True)
_, cache = model.run_with_cache(tokens)
hooks = [("blocks.1.attn.hook_v", lambda v, hook: v * torch.tensor([1.0, 0, 1, 1, 1, 1])[:, None])]
cache["k", 1], model.run_with_hooks(tokens, fwd_hooks=hooks)
# --- jaxlens
model.set_ungroup_grouped_query_attention(True)
_, cache = model.run_with_cache(tokens)
hooks = [("blocks.1.attn.hook_v", lambda v, hook: v * jnp.array([1.0, 0, 1, 1, 1, 1])[:, None])]
cache["k", 1], model.run_with_hooks(tokens, fwd_hooks=hooks)

# %% a hook on the output of the final norm
model.run_with_hooks(tokens, fwd_hooks=[("ln_final.hook_normalized", lambda value, hook: value * 0.5)])

# %% sharpening attention patterns
def sharpen(pattern, hook):
    squared = pattern**2
    return squared / squared.sum(-1)[..., None]

model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_pattern"), sharpen)])

# %% swapping two heads
def swap(z, hook):
    return z[:, :, np.array([1, 0, *range(2, z.shape[2])])]

model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", swap)])

# %% [markdown]
# # Interchange interventions
#
# **Which directions of an activation hold a variable, so that the variable can be changed alone?**
#
# Activation patching replaces a whole vector, and with it all that the vector holds. An *interchange intervention*
# replaces only its component in a subspace, by that of another run, the source. If the subspace holds a variable of the
# computation, the model answers as if this variable had the source's value. *Distributed alignment search* (DAS, Geiger
# et al. 2023, [arXiv 2303.02536](https://arxiv.org/abs/2303.02536)) learns the subspace by gradient descent.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxlens import Config, HookedTransformer, hook, plot

# %% [markdown]
# ## A model with known variables
#
# Each of 24 symbols has one of three classes. The prompt is `a b =`, and the answer is
# `(class(a) - class(b)) mod 3`. So the program has two inner variables, the classes. Which symbols share a class is
# arbitrary: it can only be learned.

# %%
n_symbols, n_classes = 24, 3
classes = jax.random.permutation(jax.random.key(0), jnp.arange(n_symbols) % n_classes)
positions = ["a", "b", "="]
cfg = Config(
    n_layers=2, d_model=32, n_heads=4, d_head=8, act_fn="relu", n_ctx=3, d_vocab=n_symbols + 1, d_vocab_out=n_classes
)
model = HookedTransformer(cfg, seed=0)


def sample(key, n_rows):
    """Prompts [row, pos] and the values of the variables [row, variable]."""
    symbols = jax.random.randint(key, (n_rows, 2), 0, n_symbols)
    return jnp.pad(symbols, ((0, 0), (0, 1)), constant_values=n_symbols), classes[symbols]


def answer(variables):
    return (variables[:, 0] - variables[:, 1]) % n_classes


def cross_entropy(logits, answers):
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, -1], answers).mean()


n_steps = 500
optimizer = optax.adam(3e-3)


def step(carry, key):
    params, state = carry
    tokens, variables = sample(key, 256)
    loss, gradients = jax.value_and_grad(
        lambda params: cross_entropy(model.with_params(params)(tokens), answer(variables))
    )(params)
    updates, state = optimizer.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), loss


@jax.jit
def training(params):
    carry = params, optimizer.init(params)
    return jax.lax.scan(step, carry, jax.random.split(jax.random.key(0), n_steps))


(params, _), losses = training(model.params)
model = model.with_params(params)

tokens, variables = sample(jax.random.key(1), 2000)
accuracy = float((model(tokens)[:, -1].argmax(-1) == answer(variables)).mean())
print(f"accuracy {accuracy:.4f}")
assert accuracy > 0.99

# %% [markdown]
# ## The intervention
#
# The hook acts on the residual stream at four stages: before and after the attention of each
# layer. It changes one stage and one position. Everything that selects the intervention is data of the hook, so the
# directions can be differentiated, and the stage and the position can be mapped over.


# %%
names = ["blocks.*.hook_resid_pre", "blocks.*.hook_resid_mid"]
stages = ["embedding", "attention 0", "MLP 0", "attention 1"]


def interchange(resid, hook, part, sources, directions, stage, position):
    """The component of the residual stream [row, pos, d_model] along the directions is that of the source run."""
    this_stage = 2 * hook.layer() + part
    basis, _ = jnp.linalg.qr(directions)  # orthonormal, [d_model, rank]
    swapped = resid + (sources[this_stage] - resid) @ basis @ basis.T
    here = (this_stage == stage) & (jnp.arange(resid.shape[1]) == position)
    return jnp.where(here[:, None], swapped, resid)


def interchanged(directions, stage, position, model, base, source):
    """The logits of the base run with a part of the source run."""
    _, cache = model.run_with_cache(source, names_filter=names)
    sources = jnp.stack([cache[site, layer] for layer in range(2) for site in ("resid_pre", "resid_mid")])
    data = {"sources": sources, "directions": directions, "stage": stage, "position": position}
    hooks = [(name, hook(interchange, part=part, **data)) for part, name in enumerate(names)]
    return model.run_with_hooks(base, fwd_hooks=hooks)


def counterfactual(variable, base, source):
    """The answer of the program to the base, if one of its variables has the value of the source."""
    return answer(jnp.where(jnp.arange(2) == variable, source, base))


# %% [markdown]
# ## Whole vectors
#
# An interchange along all 32 directions is activation patching. For each variable, stage and position: how often is the
# answer that of the program with the source's value of the variable? An intervention that does nothing scores about
# 1/3, because the variable has the same value in a third of the pairs of runs.

# %%
(base, base_variables), (source, source_variables) = (sample(jax.random.key(seed), 1000) for seed in (2, 3))
variable, stage, position = places = jnp.meshgrid(jnp.arange(2), jnp.arange(4), jnp.arange(3), indexing="ij")


def accuracy_at(directions, variable, stage, position, model):
    logits = interchanged(directions, stage, position, model, base, source)
    return (logits[:, -1].argmax(-1) == counterfactual(variable, base_variables, source_variables)).mean()


def accuracies(directions):
    """The accuracy at all places [variable, stage, position], for directions [variable, stage, position, d_model, r]"""
    flat = [values.reshape(24, *values.shape[3:]) for values in (directions, *places)]
    return jax.jit(jax.vmap(accuracy_at, in_axes=(0, 0, 0, 0, None)))(*flat, model).reshape(2, 4, 3)


whole = accuracies(jnp.broadcast_to(jnp.eye(32), (2, 4, 3, 32, 32)))
plot.heatmap(
    whole[:, ::-1], facet=0, xlabels=positions, ylabels=stages[::-1], xname="position", yname="after",
    title="Accuracy of patching whole vectors: class(a), class(b)",
)

# %%
assert whole[0, 0, 0] == whole[1, 0, 1] == 1 and whole[:, 1:].max() < 0.4
for row in (0, 1):
    print(f"after {stages[row]}:", np.asarray(whole, float)[:, row].round(2).tolist())

# %% [markdown]
# Patching the embedding of a symbol changes its class alone. The first attention layer moves both classes to the last
# position. From there on, the vector holds both, and patching changes both: the answer is the source's. Patching cannot
# say whether the classes are separate variables there.
#
# ## The search, at all places at once
#
# Three classes need two dimensions. A search learns two directions for one variable at one place. `vmap` makes it 24
# searches, in a single compiled program.

# %%
search_optimizer = optax.adam(0.03)


def search(directions, variable, stage, position, model, keys):
    """Directions [d_model, rank] learned from a batch of bases and sources per key."""

    def search_step(carry, key):
        directions, state = carry
        (base, base_variables), (source, source_variables) = (sample(each, 128) for each in jax.random.split(key))
        wanted = counterfactual(variable, base_variables, source_variables)
        gradient = jax.grad(
            lambda directions: cross_entropy(interchanged(directions, stage, position, model, base, source), wanted)
        )(directions)
        updates, state = search_optimizer.update(gradient, state)
        return (optax.apply_updates(directions, updates), state), None

    carry = directions, search_optimizer.init(directions)
    return jax.lax.scan(search_step, carry, keys)[0][0]


def search_at(places, rank):
    """The accuracy of learned subspaces and of random ones, each [place], for places (variable, stage, position)."""
    start = jax.random.normal(jax.random.key(4), (len(places[0]), 32, rank))
    keys = jax.random.split(jax.random.key(5), 200)
    learned = jax.jit(jax.vmap(search, in_axes=(0, 0, 0, 0, None, None)))(start, *places, model, keys)
    test = jax.jit(jax.vmap(accuracy_at, in_axes=(0, 0, 0, 0, None)))
    return learned, test(learned, *places, model), test(start, *places, model)


learned, aligned, random = search_at([values.ravel() for values in places], rank=2)
learned, aligned = learned.reshape(2, 4, 3, 32, 2), aligned.reshape(2, 4, 3)
plot.heatmap(
    aligned[:, ::-1], facet=0, xlabels=positions, ylabels=stages[::-1], xname="position", yname="after",
    title="Accuracy of learned two-dimensional subspaces: class(a), class(b)",
)

# %%
print(f"learned: {aligned[0, 0, 0]:.3f} in the embedding of a, {aligned[1, 0, 1]:.3f} in that of b")
print(f"learned at the last position, after attention 0: {aligned[0, 1, 2]:.3f} and {aligned[1, 1, 2]:.3f}")
print(f"random: at most {random.max():.3f}")
assert aligned[0, 0, 0] > 0.95 and aligned[1, 0, 1] > 0.85 and random.max() < 0.4
assert 0.45 < aligned[:, 1, 2].min() <= aligned[:, 1, 2].max() < 0.75

# %% [markdown]
# In the embedding, two of 32 dimensions hold the class of a symbol, and the other thirty do not matter. Random
# dimensions score like no intervention.
#
# ## The subspace, seen
#
# These are all symbols at the position of `a`, in the learned plane. The search only saw answers. The classes are
# clusters.

# %%
symbols = jnp.arange(n_symbols)
prompts = jnp.stack([symbols, jnp.zeros_like(symbols), jnp.full_like(symbols, n_symbols)], axis=1)
_, cache = model.run_with_cache(prompts, names_filter="blocks.0.hook_resid_pre")
plane, _ = jnp.linalg.qr(learned[0, 0, 0])
points = np.asarray(cache["resid_pre", 0][:, 0] @ plane)
centers = np.stack([points[classes == each].mean(0) for each in range(n_classes)])
nearest = np.linalg.norm(points[:, None] - centers, axis=-1).argmin(-1)
assert (nearest == classes).all()

_, axes = plt.subplots(figsize=(4, 4))
for each in range(n_classes):
    axes.scatter(*points[classes == each].T, label=f"class {each}")
axes.set(title="Embeddings in the learned plane", aspect="equal")
axes.legend()
plt.show()

# %% [markdown]
# ## More dimensions
#
# At the last position, after attention, two dimensions change the answer as wanted more often than by chance, but far
# from always. Do more dimensions help?

# %%
ranks = [1, 2, 4, 8, 16]
compared = {
    "class(a) at a, embedding": (0, 0, 0), "class(a) at =, attention 0": (0, 1, 2),
    "class(b) at =, attention 0": (1, 1, 2),
}
some_places = jnp.array(list(compared.values())).T
by_rank = np.stack([search_at(some_places, rank)[1] for rank in ranks], axis=1)
print(by_rank.round(3))
assert by_rank[0, 1:].min() > 0.95 and by_rank[1:].max() < 0.8
plot.lines(by_rank, ranks, names=list(compared), xname="dimensions", unit="accuracy", title="Accuracy by dimensions")

# %% [markdown]
# They do not help much. The model answers every prompt correctly, and still the search finds no subspace at the last
# position that holds one class and not the other. A variable of the program that solves a task need not be a subspace
# of the model's activations. A search that fails is a result, if the same search succeeds where the variable is known
# to be, as in the embedding.
#
# The opposite error is possible too. With enough directions, a search can fit arbitrary labels, even in random models
# (Arora et al. 2024, [arXiv 2402.12560](https://arxiv.org/abs/2402.12560)). Compare with random directions, and test on
# other prompts.
#
# ## Try this next
#
# - Replace the orthogonal projection by two matrices, one that reads and one that writes:
#   `resid + (source - resid) @ read @ write.T`. How much of the mixture does it undo?
# - Train models with other seeds, or one head per symbol. When are the classes separate at the last position?
# - Run the search on SmolLM2: which directions of the residual stream at " France" hold the capital? Swap countries
#   in "Q: What is the capital of France? A: The capital is".
# - [docs/interchange.md](../docs/interchange.md) has the search in twenty lines, with a known subspace.

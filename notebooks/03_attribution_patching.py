# %% [markdown]
# # Attribution patching, and where it lies
#
# **When can a gradient replace a thousand patched runs?**
#
# Activation patching needs a run for each patch. Attribution patching estimates all of them from one gradient
# ([Nanda 2023](https://www.neelnanda.io/mechanistic-interpretability/attribution-patching)):
#
# > effect of a patch ≈ (clean activation − corrupted activation) · gradient in the corrupted run
#
# That is exact if the metric is a linear function of the activation. This notebook compares estimates with effects,
# finds the cases that differ, and shows why they do. It uses the task of [notebook 02](02_indirect_object.ipynb).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxlens import HookedTransformer, hook, plot
from jaxlens.analysis import activation_patch, attribution_patch, correlation, edge_attribution_patch, path_patch

model = HookedTransformer.from_pretrained("smollm2-135m-instruct")
templates = [
    ("When John and Mary went to the shops,{} gave the bag to", (" John", " Mary")),
    ("When Tom and James went to the park,{} gave the ball to", (" Tom", " James")),
    ("When Dan and Sid went to the shops,{} gave an apple to", (" Dan", " Sid")),
    ("After Martin and Amy went to the park,{} gave a drink to", (" Martin", " Amy")),
]
pairs = [(text, giver, names[1 - i]) for text, names in templates for i, giver in enumerate(names)]
clean = model.to_tokens([text.format(giver) for text, giver, receiver in pairs])
corrupted = clean.reshape(4, 2, -1)[:, ::-1].reshape(clean.shape)  # the other giver of the same template
givers = jnp.array([model.to_single_token(giver) for _, giver, _ in pairs])
receivers = jnp.array([model.to_single_token(receiver) for _, _, receiver in pairs])
GIVER = 10  # the only position where the prompts differ


def metric(logits):
    """The mean logit difference: receiver minus giver."""
    last, rows = logits[:, -1], jnp.arange(len(logits))
    return (last[rows, receivers] - last[rows, givers]).mean()


goal, start = float(metric(model(clean))), float(metric(model(corrupted)))
assert (clean != corrupted).any(0).nonzero()[0].tolist() == [GIVER] and abs(goal + start) < 1e-3
print(f"{goal:.2f} in the clean run, {start:.2f} in the corrupted run")

# %% [markdown]
# ## Estimates and effects
#
# Two kinds of patches: the output of each of the 270 heads, and the residual stream at each of the 450 layers and
# positions. The effects are measured with 720 patched runs, the estimates with one gradient.

# %%
sites = {"z": ("layer", "head"), "resid_pre": ("layer", "pos")}
effects = {
    site: activation_patch(model, corrupted, clean, metric, site, axes, progress=False).change
    for site, axes in sites.items()
}  # fmt: skip
assert [effect.values.size for effect in effects.values()] == [270, 450]


def compared(**options):
    """The agreement of estimates and effects, for each site."""
    estimates = attribution_patch(model, clean, corrupted, metric, list(sites), **options)
    per_head = {"z": estimates["z"].sum("pos"), "resid_pre": estimates["resid_pre"]}
    return {site: correlation(per_head[site], effects[site]) for site in sites}


linear = compared()
for site, agreement in linear.items():
    print(f"{site}: {agreement}")
assert 0.8 < linear["z"].pearson < 0.9 and 0.7 < linear["resid_pre"].pearson < 0.8


# %%
def scatter(agreements, names):
    """Effects against estimates, a panel for each agreement. On the line, they are equal."""
    _, panels = plt.subplots(1, len(agreements), figsize=(4 * len(agreements), 3.6), layout="constrained")
    for panel, agreement, name in zip(panels, agreements, names, strict=True):
        estimates, effects = np.asarray(agreement.attribution).ravel(), np.asarray(agreement.patching).ravel()
        panel.axline((0, 0), slope=1, color="#999999", linewidth=0.8)
        panel.scatter(estimates, effects, s=9, color="#2a6fbb")
        panel.set(title=f"{name}: Pearson {agreement.pearson:.2f}", xlabel="estimate", ylabel="effect (logits)")
        panel.spines[["top", "right"]].set_visible(False)
    plt.show()


scatter(linear.values(), ["heads", "residual stream"])

# %% [markdown]
# Most points are near the line, so the estimates rank most components well. But some large effects have small
# estimates. Among heads, two are missed: 20.0, and above all 17.4. Both are parts of the circuit of notebook 02. In a
# search by attribution alone, 17.4 would not be found.

# %%
heads = linear["z"]
error = heads.patching.values - heads.attribution.values
missed = [divmod(int(i), 9) for i in np.argsort(-np.abs(error), axis=None)[:2]]
assert sorted(missed) == [(17, 4), (20, 0)]
for layer, head in [*missed, (23, 3)]:
    estimate, effect = heads.attribution.values[layer, head], heads.patching.values[layer, head]
    print(f"{layer}.{head}: estimate {estimate:+.2f}, effect {effect:+.2f}")
assert heads.attribution.values[17, 4] < 0.1 * heads.patching.values[17, 4]
assert heads.attribution.values[20, 0] < 0.3 * heads.patching.values[20, 0]
rank = int((np.abs(heads.attribution.values) > abs(heads.attribution.values[17, 4])).sum()) + 1
assert rank > 25
print(f"by its estimate, 17.4 is head number {rank}; by its effect, number 3")
assert [at for at, _ in heads.patching.strongest(3)][2] == {"layer": "17", "head": "4"}

# %% [markdown]
# In the residual stream, the giver's position is missed. Up to layer 18, the effect is the whole difference, and the
# estimate a small part of it.

# %%
at_giver = np.stack([linear["resid_pre"].patching.values[:, GIVER], linear["resid_pre"].attribution.values[:, GIVER]])
assert (at_giver[0, :19] > 0.9 * (goal - start)).all() and (at_giver[1, :19] < 0.3 * (goal - start)).all()
plot.lines(
    at_giver, names=["effect", "estimate"], xname="before layer", unit="logits", title="Residual stream at the giver"
)  # fmt: skip

# %% [markdown]
# ## Why: the curve is flat where the gradient is taken
#
# Move the embedding of the giver in small steps from the corrupted name to the clean one, and look at the metric. It is
# nearly flat at both ends and steep in between. The gradient only sees the first end. The 21 steps are one `vmap`.

# %%
name = "blocks.0.hook_resid_pre"
clean_embedding = model.run_with_cache(clean, names_filter=name)[1][name][:, GIVER]


def move(resid, hook, clean, share):
    return resid.at[:, GIVER].add(share * (clean - resid[:, GIVER]))


@jax.jit
def moved(share, model):
    """The metric with the giver's embedding a share of the way from corrupted to clean."""
    hooks = [(name, hook(move, clean=clean_embedding, share=share))]
    return metric(model.run_with_hooks(corrupted, fwd_hooks=hooks))


shares = jnp.linspace(0, 1, 21)
curve = jax.vmap(moved, in_axes=(0, None))(shares, model)
slope = float(jax.grad(moved)(0.0, model))
estimate = float(linear["resid_pre"].attribution.values[0, GIVER])
assert abs(slope - estimate) < 1e-2 * abs(goal - start)  # the estimate is the slope at the corrupted end
slopes = jnp.diff(curve) * 20 / (goal - start)  # 1 is the mean
assert slopes.max() > 3 and slopes[0] < 0.3 and slopes[-1] < 0.3
plot.lines(
    np.stack([curve, start + slope * shares]), [f"{share:.2f}" for share in shares], names=["metric", "tangent"],
    xname="share of the way", unit="logits", title="From the corrupted to the clean name",
)  # fmt: skip

# %% [markdown]
# ## A better estimate: gradients along the way
#
# `ig_steps=5` averages the gradients of five runs with embeddings between the corrupted and the clean ones (integrated
# gradients, [Hanna et al. 2024](https://arxiv.org/abs/2403.17806)). Large effects are now estimated better. The
# price, besides five gradients: ranks agree less than before, because small effects are estimated worse.

# %%
integrated = compared(ig_steps=5)
scatter(integrated.values(), ["heads", "residual stream"])
for site in sites:
    before, after = linear[site], integrated[site]
    print(f"{site} with one gradient: {before}")
    print(f"{site} with five: {after}")
    assert after.pearson > 0.94 and after.pearson > before.pearson and after.spearman < before.spearman
print(f"17.4: estimate {integrated['z'].attribution.values[17, 4]:+.2f}, effect {heads.patching.values[17, 4]:+.2f}")
assert integrated["z"].attribution.values[17, 4] > 0.5 * heads.patching.values[17, 4]

# %% [markdown]
# ## Edges: one path at a time
#
# `edge_attribution_patch` estimates what happens if a single component reads the clean output of another one
# ([Syed et al. 2023](https://arxiv.org/abs/2310.10348)). It gives all edges of the model at once. The edges out of a
# head sum to the estimate for the head.

# %%
edges = edge_attribution_patch(model, clean, corrupted, metric)
total = float(edges.at(upstream="a20.h0").values.sum())
assert abs(total - heads.attribution.values[20, 0]) < 1e-3
print(f"{edges.exists.sum()} edges; those out of 20.0 sum to {total:.2f}")
for upstream, receiver, score in edges.top_edges(8):
    print(f"{score:+6.2f}  {upstream} → {receiver}")

# %% [markdown]
# So the edges can say why 20.0 was underestimated. Path patching measures them: into the queries of layers 21 to 24,
# into the MLPs, and into the logits.

# %%
sender = [(20, 0)]
queries = [(layer, head) for layer in range(21, 25) for head in range(9)]
mlps = list(range(20, 30))
parts = [("q", queries), ("mlp", mlps), ("logits", None)]
measured = np.concatenate([
    path_patch(model, corrupted, clean, metric, part, sender, nodes, progress=False).change.values[0]
    for part, nodes in parts
])  # fmt: skip
names = [*(f"a{layer}.h{head}<q>" for layer, head in queries), *(f"m{layer}" for layer in mlps), "logits"]
estimated = np.array([float(edges.at(upstream="a20.h0", receiver=name).values) for name in names])
worst = int(np.abs(estimated - measured).argmax())
assert names[worst] == "m20" and estimated[worst] < -3 and measured[worst] > -1.5

shown = np.argsort(-np.abs(estimated))[:8]
plot.heatmap(
    np.stack([estimated, measured])[:, shown].T, ylabels=[names[i] for i in shown], xlabels=["estimate", "effect"],
    unit="logits", title="Edges out of 20.0",
)  # fmt: skip

# %% [markdown]
# All edges agree but one: the edge into the MLP of the same layer, m20. The gradient says that this MLP takes back most
# of what the head adds. Measured, it takes back far less, because a clean output moves the neurons out of the
# region where the gradient holds. One wrong edge hides a head with a large effect.

# %%
others = np.delete(np.arange(len(names)), worst)
agreement = np.corrcoef(estimated[others], measured[others])[0, 1]
largest = np.abs(estimated - measured)[others].max()
assert agreement > 0.97 and largest < 0.3
print(f"all edges but m20: correlation {agreement:.3f}, largest error {largest:.2f}")
print(f"m20: estimate {estimated[worst]:+.2f}, effect {measured[worst]:+.2f}; error of the head {error[20, 0]:+.2f}")
assert 0.6 < (measured[worst] - estimated[worst]) / error[20, 0] < 1

# %% [markdown]
# ## Queries and keys: the softmax
#
# Another source of error: the softmax of attention saturates. If a head attends to one token with weight near 1, the
# gradient with respect to its query is near 0 or misleading. `exact_softmax` computes the new pattern instead of its
# derivative ([Kramár et al. 2024](https://arxiv.org/abs/2403.00745)). It ranks queries better. It cannot help with what
# comes after the attention: 17.4 is still missed.

# %%
effect_of_queries = activation_patch(model, corrupted, clean, metric, "q", ("layer", "head"), progress=False).change
by_query = {
    exact: correlation(
        attribution_patch(model, clean, corrupted, metric, "q", exact_softmax=exact)["q"].sum("pos"), effect_of_queries
    )
    for exact in (False, True)
}
for exact, agreement in by_query.items():
    print(f"exact_softmax={exact}: {agreement}; 17.4: {agreement.attribution.values[17, 4]:+.2f}")
print(f"effect of the query of 17.4: {effect_of_queries.values[17, 4]:+.2f}")
assert by_query[True].spearman > by_query[False].spearman + 0.1
assert by_query[True].attribution.values[17, 4] < 0.1 * effect_of_queries.values[17, 4]

# %% [markdown]
# ## What to do
#
# - Use one gradient to find candidates, and `ig_steps` before you call a component unimportant.
# - Patch the candidates. `compare_with_patching` does both and returns the agreement.
# - Distrust estimates across a whole answer. The clean and corrupted runs here have opposite answers, and a gradient at
#   one of them knows little of the other.
#
# ## Try this next
#
# - Exchange clean and corrupted: estimate noising instead of denoising. By symmetry of these prompts, the estimates
#   should be the same up to sign. Are they, with one prompt only?
# - Use a smoother metric, such as the probability of the receiver, or a corruption that changes less, such as another
#   place. Do the estimates improve?
# - Take the two correlations over the 20 strongest heads only. Which estimate is better for a circuit search?
# - Compare `ig_steps=2`, 5 and 20. How many gradients are enough?

# %% [markdown]
# # Grokking modular addition
#
# **What does a transformer learn while its training loss is already zero?**
#
# A transformer with one layer learns `a + b mod p` from less than half of all pairs. It first memorizes them, and much
# later generalizes to the rest: it *groks* (Power et al. 2022). Nanda et al. (2023) read the algorithm from the
# weights. It turns numbers into angles and adds the angles. This notebook trains such a model in seconds and repeats
# the main steps of their analysis.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxlens import Config, HookedTransformer, plot

p = 59
cfg = Config(
    n_layers=1, d_model=64, n_heads=4, d_head=16, d_mlp=256, act_fn="relu", normalization_type=None,
    n_ctx=3, d_vocab=p + 1, d_vocab_out=p,
)
model = HookedTransformer(cfg, seed=0)

# %% [markdown]
# ## All pairs
#
# A prompt is `a b =`, and the answer is read at the last token. The model trains on a random part of all p² pairs.

# %%
a, b = jnp.divmod(jnp.arange(p * p), p)
tokens = jnp.stack([a, b, jnp.full_like(a, p)], axis=1)  # [pair, pos]
answers = (a + b) % p
order = jax.random.permutation(jax.random.key(1), p * p)
n_train = int(0.4 * p * p)
train, test = order[:n_train], order[n_train:]
print(f"{len(train)} pairs to train on, {len(test)} to test on")
assert len(train) == 1392 and len(test) == 2089


def cross_entropy(logits, pairs):
    return optax.softmax_cross_entropy_with_integer_labels(logits, answers[pairs]).mean()


def answer_logits(params, pairs):
    """The logits at the last token, [pair, answer]."""
    return model.with_params(params)(tokens[pairs])[:, -1]


# %% [markdown]
# ## The whole training is one compiled program
#
# `model.params` is a flat dict of arrays, so any optax optimizer applies. Each step uses all training pairs. The weight
# decay of 1 is what makes the model generalize. A scan returns the parameters after every 20 steps.

# %%
optimizer = optax.adamw(2e-3, b2=0.98, weight_decay=1.0)


def step(carry, _):
    params, state = carry
    gradients = jax.grad(lambda params: cross_entropy(answer_logits(params, train), train))(params)
    updates, state = optimizer.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), None


def steps(carry, _):
    carry, _ = jax.lax.scan(step, carry, length=20)
    return carry, carry[0]


@jax.jit
def training(params):
    """The parameters after every 20 steps of 1,200."""
    return jax.lax.scan(steps, (params, optimizer.init(params)), length=60)[1]


snapshots = training(model.params)
steps_done = 20 * np.arange(1, 61)
model = model.with_params(jax.tree.map(lambda values: values[-1], snapshots))


# %% [markdown]
# ## It memorizes, then generalizes
#
# The parameters of all snapshots have a leading axis, so `jax.lax.map` measures all of them in one program.

# %%
@jax.jit
def losses(params):
    return tuple(cross_entropy(answer_logits(params, pairs), pairs) for pairs in (train, test))


train_loss, test_loss = (np.asarray(values) for values in jax.lax.map(losses, snapshots))
memorized = int(steps_done[(train_loss < 0.1).argmax()])
generalized = int(steps_done[(test_loss < 0.1).argmax()])
accuracy = float((answer_logits(model.params, test).argmax(-1) == answers[test]).mean())
print(f"train loss below 0.1 after {memorized} steps, test loss after {generalized}; test accuracy {accuracy:.4f}")
assert accuracy > 0.99 and generalized > 2 * memorized
assert test_loss[(train_loss < 0.1).argmax()] > np.log(p)  # worse than guessing, when it has memorized


# %%
def plot_losses(series, title):
    _, axes = plt.subplots(figsize=(7, 3))
    for name, values in series.items():
        axes.semilogy(steps_done, values, label=name)
    axes.set(xlabel="step", ylabel="loss", title=title, ylim=(1e-6, 30))
    axes.legend()
    plt.show()


plot_losses({"train": train_loss, "test": test_loss}, "Grokking")

# %% [markdown]
# When the training loss falls below 0.1, the test loss is higher than that of a uniform guess, log p. The model has
# learned pairs, not addition.
#
# ## The embedding is a set of circles
#
# Write the embedding of the numbers 0 … p - 1 in the Fourier basis over numbers. A random matrix has equal norm at all
# frequencies. The trained one has only a few *key frequencies*.

# %%
numbers = np.arange(p)
frequencies = np.arange(1, p // 2 + 1)
angles = 2 * np.pi * frequencies[:, None] * numbers / p
cosines, sines = np.sqrt(2 / p) * np.cos(angles), np.sqrt(2 / p) * np.sin(angles)  # orthonormal rows


def norms_by_frequency(W_E):
    """The squared norm of the embedding at each frequency, as a share of all."""
    power = ((cosines @ W_E[:p]) ** 2 + (sines @ W_E[:p]) ** 2).sum(-1)
    return power / power.sum()


before = norms_by_frequency(np.asarray(HookedTransformer(cfg, seed=0).W_E))
after = norms_by_frequency(np.asarray(model.W_E))
key = np.sort(frequencies[after > 0.05])
print("key frequencies:", key.tolist(), f"with {after[key - 1].sum():.0%} of the norm")
assert 2 <= len(key) <= 7 and after[key - 1].sum() > 0.75 and before.max() < 0.06
plot.lines(
    np.stack([after, before]), frequencies.tolist(), names=["trained", "at initialization"], xname="frequency",
    unit="share", title="Norm of the embedding at each frequency",
)

# %% [markdown]
# The two directions of a key frequency, cosine and sine, span a plane. Projected onto it, the numbers lie on a circle,
# and the number n has the angle 2πkn / p. Dividing by the largest radius makes the circles comparable.

# %%
W_E = np.asarray(model.W_E)[:p]
figure, axes = plt.subplots(1, len(key), figsize=(3 * len(key), 3), squeeze=False)
roundness = []
for axis, k in zip(axes[0], key, strict=True):
    plane, _ = np.linalg.qr(np.stack([cosines[k - 1] @ W_E, sines[k - 1] @ W_E], axis=1))
    points = W_E @ plane
    radius = np.linalg.norm(points, axis=1)
    roundness.append(radius.std() / radius.mean())
    axis.scatter(*(points / radius.max()).T, c=numbers * k % p, cmap="twilight", s=14)
    for n in numbers[:6]:
        axis.annotate(str(n), points[n] / radius.max())
    axis.set(title=f"frequency {k}", aspect="equal", xticks=[], yticks=[])
plt.show()
print("spread of the radius, relative to its mean:", [round(float(value), 3) for value in roundness])
assert max(roundness) < 0.4  # it would be 0.52 for points of a normal distribution

# %% [markdown]
# ## The logits are cosines of a + b - c
#
# If the algorithm adds angles, the logit of the answer c depends on `a + b - c` only, and is a sum of cosines of key
# frequencies. Both can be tested. First, how much of the variance of the logits do the functions
# cos(2πk(a + b) / p) and sin(2πk(a + b) / p) of key frequencies explain?

# %%
def sum_basis(ks):
    """Orthonormal functions of a + b, [pair, function]: cosine and sine of each frequency."""
    angle = 2 * np.pi * np.asarray(ks) * np.asarray(answers)[:, None] / p
    return np.sqrt(2) / p * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


basis = jnp.asarray(sum_basis(key), jnp.float32)
everything = jnp.arange(p * p)
logits = answer_logits(model.params, everything)
centered = logits - logits.mean(0)
explained = float(jnp.sum((basis.T @ centered) ** 2) / jnp.sum(centered**2))
print(f"explained: {explained:.1%} with {basis.shape[1]} functions of {p * p}")
assert explained > 0.95

# %% [markdown]
# Second, the mean logit as a function of `a + b - c`. It has a peak at 0, where the cosines of all frequencies agree.

# %%
difference = (answers[:, None] - jnp.arange(p)) % p
by_difference = jnp.bincount(difference.ravel(), logits.ravel(), length=p) / p**2
fit = np.concatenate([cosines[key - 1], np.ones((1, p)) / np.sqrt(p)])
fitted = fit.T @ (fit @ np.asarray(by_difference))
error, size = np.abs(fitted - by_difference).max(), np.ptp(by_difference)
print(f"largest error of a sum of {len(key)} cosines: {error:.2f} of a range of {size:.1f}")
assert int(by_difference.argmax()) == 0 and error < 0.05 * size
plot.lines(
    np.stack([by_difference, fitted]), numbers.tolist(), names=["model", f"{len(key)} cosines"],
    xname="a + b - c mod p", unit="logits", title="The mean logit depends on a + b - c",
)


# %% [markdown]
# ## The algorithm grows before the test loss falls
#
# Two losses follow the algorithm during training (Nanda et al. 2023). The *restricted* loss keeps only the key
# functions of a + b in the logits. It says whether the algorithm works by itself. The *excluded* loss removes them. It
# is measured on training pairs, and says whether the rest, the memory, suffices.

# %%
@jax.jit
def progress(params):
    logits = answer_logits(params, everything)
    mean = logits.mean(0)
    algorithm = basis @ (basis.T @ (logits - mean))
    restricted, excluded = mean + algorithm, logits - algorithm
    return cross_entropy(restricted, everything), cross_entropy(excluded[train], train)


restricted, excluded = (np.asarray(values) for values in jax.lax.map(progress, snapshots))
plot_losses(
    {"train": train_loss, "test": test_loss, "restricted": restricted, "excluded": excluded}, "Measures of progress"
)

# %%
memory = int((train_loss < 0.1).argmax())  # the first snapshot that has memorized
for moment, i in (("when the pairs are memorized", memory), ("at the end", -1)):
    print(f"{moment}: test {test_loss[i]:.3f}, restricted {restricted[i]:.3f}, excluded {excluded[i]:.3f}")
half = np.log(p) / 2
halfway, halfway_test = (int(steps_done[(values < half).argmax()]) for values in (restricted, test_loss))
print(f"half of the loss of a guess: restricted after {halfway} steps, test after {halfway_test} steps")
assert restricted[memory] < np.log(p) < test_loss[memory] and excluded[memory] > np.log(p)
assert restricted[-1] < 0.01 and excluded[-1] > excluded[memory] and 3 * halfway < halfway_test

# %% [markdown]
# The restricted loss begins to fall while the model memorizes, and falls steadily while the test loss is still worse
# than a guess. So the algorithm is there long before the test loss shows it, and hidden by what the model has
# memorized. The fall of the test loss is the end of a gradual process. The excluded loss rises: the model needs the
# algorithm even for the pairs that it has seen, and more so at the end.
#
# In the paper, with fewer training pairs, the excluded loss stays low for some time after memorization. Here the
# algorithm forms as early as the memory.
#
# ## Try this next
#
# - Train on 30 % of the pairs, or set `p = 113`, as in the paper, with a smaller learning rate and more steps.
# - Train four seeds at once: `jax.vmap(training)` of stacked parameters. Do they find the same frequencies?
# - Set `weight_decay=0`. The training loss still falls; does the test loss?
# - Which neurons belong to which frequency? Run all pairs with
#   `model.run_with_cache(tokens, names_filter="blocks.0.mlp.hook_post")` and take the Fourier transform of each neuron.

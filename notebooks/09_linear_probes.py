# %% [markdown]
# # Batch inference and linear probes
#
# **In which layer can a property of a text be read from the residual stream by a linear map?**
#
# The property here: are the words of a text in their natural order? Docstrings of the standard library are examples of
# one class, and the same docstrings with their words in random order of the other. A probe that only sees which words
# occur cannot tell them apart. `batch.run` reduces the activations of every layer inside the compiled
# program, so that only what the probe needs leaves the device.

# %%
import ast
import random
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlens import HookedTransformer, batch, plot

model = HookedTransformer.from_pretrained("smollm2-135m-instruct")

# %% [markdown]
# ## The data set
#
# First lines of docstrings, in order (label 1) and shuffled (label 0). Capital letters and the period would give away
# the first and the last word, so they are removed, and each word has a space in front. So both versions have the same
# tokens. Both are in the same part, training or test, so a probe cannot remember the words.


# %%
def first_lines():
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield (ast.get_docstring(node) or "").split("\n")[0].lower().strip(".:!")


generator = random.Random(0)
lines = [line for line in dict.fromkeys(first_lines()) if 6 <= len(line.split()) <= 12]
chosen = generator.sample(lines, 500)
words = [line.split() for line in chosen]
texts = ["".join(f" {word}" for word in each) for each in words + [generator.sample(each, len(each)) for each in words]]
labels = np.repeat([1, 0], 500)
is_train = np.tile(np.arange(500) < 350, 2)
print(len(texts), "texts, such as", repr(texts[0]), "and", repr(texts[500]))

# %% [markdown]
# ## All layers in one pass
#
# `reduce` gets the logits and the cache of a batch, and is compiled with the model. It returns the mean over tokens of
# the residual stream after every layer, [row, layer, d_model]. The third argument has the mask: rows of a batch are
# padded, and BOS is left out.


# %%
def features(logits, cache, inputs):
    first = jnp.cumsum(inputs.mask, axis=1) == 1
    weights = (inputs.mask & ~first)[:, None, :, None]
    layers = jnp.stack([cache["resid_pre", 0], *(cache["resid_post", layer] for layer in range(30))], axis=1)
    return (layers * weights).sum(2) / weights.sum(2)


names = ["blocks.0.hook_resid_pre", "blocks.*.hook_resid_post"]
rows = np.stack(list(batch.run(model, texts, names_filter=names, reduce=features)))
rows.shape

# %%
_, cache = model.run_with_cache(texts[0], names_filter=names)
np.testing.assert_allclose(rows[0, 13], cache["resid_post", 12][0, 1:].mean(0), atol=1e-4 * np.abs(rows[0, 13]).max())

# %% [markdown]
# ## A probe for every layer, at once
#
# A probe is logistic regression on standardized features. `vmap` trains the 31 probes together.


# %%
def standardized(rows):
    train_rows = rows[is_train]
    return (rows - train_rows.mean(0)) / (train_rows.std(0) + 1e-6)


def loss(probe, x, y):
    logits = x @ probe["weights"] + probe["bias"]
    return optax.sigmoid_binary_cross_entropy(logits, y).mean() + 0.02 * (probe["weights"] ** 2).sum()


optimizer = optax.adam(0.01)


def trained(x, y):
    """The probe [d_model] of features [row, d_model]."""

    def step(carry, _):
        probe, state = carry
        updates, state = optimizer.update(jax.grad(loss)(probe, x, y), state)
        return (optax.apply_updates(probe, updates), state), None

    probe = {"weights": jnp.zeros(x.shape[1]), "bias": jnp.zeros(())}
    return jax.lax.scan(step, (probe, optimizer.init(probe)), length=300)[0][0]


def accuracies(probes, part):
    logits = jnp.einsum("rld,ld->rl", inputs[part], probes["weights"]) + probes["bias"]
    return np.asarray(((logits > 0) == labels[part, None]).mean(0))


inputs = standardized(rows)
train_probes = jax.jit(jax.vmap(trained, in_axes=(1, None)))
probes = train_probes(inputs[is_train], labels[is_train])
control = train_probes(inputs[is_train], np.random.default_rng(0).permutation(labels[is_train]))
test, fitted, by_chance = (
    accuracies(*each) for each in ((probes, ~is_train), (probes, is_train), (control, ~is_train))
)
best = int(test.argmax()) - 1
print(f"test accuracy: {test[0]:.3f} in the embedding, {test.max():.3f} after layer {best}, {test[-1]:.3f} at the end")
print(f"trained on labels in random order: {by_chance.mean():.3f} on average")
assert abs(test[0] - 0.5) < 0.05 and test.max() > 0.9 and abs(by_chance.mean() - 0.5) < 0.05

# %%
places = ["embedding", *map(str, range(30))]
plot.lines(
    np.stack([test, by_chance]), places, names=["test", "labels in random order"], xname="residual stream after layer",
    unit="accuracy", title="Is the order of words natural? A linear probe of each layer",
)

# %% [markdown]
# The embedding has no information: the mean over tokens does not depend on their order. Attention has to compare
# neighbors first. One accuracy is uncertain by about the standard error below, so small differences between layers mean
# nothing.

# %%
n_test = int((~is_train).sum())
error = float(np.sqrt(test.max() * (1 - test.max()) / n_test))
first = int((test > 0.85).argmax()) - 1
print(f"standard error {error:.3f} with {n_test} texts; the accuracy first exceeds 0.85 after layer {first}")
assert error < 0.025

# %% [markdown]
# ## What the model itself thinks
#
# A probe shows what can be read from activations, not what the model uses. Here, the model's own judgment needs no
# probe: `batch.score` gives the log-probability of each text. Both versions have the same tokens, so the sums can be
# compared. A probe judges each text alone; for a fair comparison, it also gets pairs.

# %%
pairs = np.flatnonzero(~is_train[:500])
scores = batch.score(model, [texts[i] for i in (*pairs, *(pairs + 500))])
in_order, out_of_order = np.array([log_probs.sum() for log_probs in scores]).reshape(2, len(pairs))
by_model = float((in_order > out_of_order).mean())

directions = inputs[:, best + 1] @ np.asarray(probes["weights"][best + 1])
by_probe = float((directions[pairs] > directions[pairs + 500]).mean())
print(f"{len(pairs)} pairs: the model prefers the natural order in {by_model:.1%}, the probe in {by_probe:.1%}")
assert by_model > 0.9 and by_probe > 0.9

# %% [markdown]
# ## Try this next
#
# - Swap only two neighboring words instead of shuffling all. In which layer does the accuracy rise now?
# - Use the last token instead of the mean: `cache["resid_post", layer][:, -1]`, since rows are padded on the left.
# - Is the direction used? Remove it from the residual stream with hooks of `batch.score(..., hooks=)`, and compare the
#   log-probabilities with those after removing a random direction.
# - Store activations once and train many probes on them: `batch.harvest`, in
#   [docs/data_sets.md](../docs/data_sets.md).

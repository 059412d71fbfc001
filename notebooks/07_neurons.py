# %% [markdown]
# # Neurons over a corpus
#
# **What does one neuron do: when is it active, and what changes without it?**
#
# This notebook finds an interpretable neuron among the 1,536 of a layer, reads the texts in which it is most active,
# looks at its activation on every token of a corpus, removes it, and turns it on by hand.

# %%
import ast
import random
import sysconfig
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxlens import HookedTransformer, batch, hook, plot

model = HookedTransformer.from_pretrained("smollm2-135m-instruct")

# %% [markdown]
# ## A corpus that is on every machine
#
# The paragraphs of the docstrings in Python's standard library: 300 to find a neuron, and the others to test what was
# found.


# %%
def docstrings():
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


paragraphs = dict.fromkeys(paragraph for text in docstrings() for paragraph in text.split("\n\n"))
candidates = [text for text in paragraphs if 100 < len(text) < 300]
random.Random(0).shuffle(candidates)
corpus, held_out = candidates[:300], candidates[300:]
n_tokens = sum(len(tokens) for tokens in map(model.to_tokens, corpus) for tokens in tokens)
print(f"{len(corpus)} paragraphs, {n_tokens:,} tokens")

# %% [markdown]
# ## The strongest activations of every neuron
#
# `top_activations` runs the model over the corpus, and keeps for each neuron the six documents in which it is most
# active. Only the layers up to the named one run.

# %%
layer, name = 27, "blocks.27.mlp.hook_post"
top = batch.top_activations(model, corpus, name, k=6)[name]
top.values.shape  # [neuron rank]

# %% [markdown]
# Many neurons of a late layer prepare a certain next token. So look for neurons whose six strongest activations are
# all followed by the same token, but come at different tokens.


# %%
def around(neuron):
    """For each of the six contexts: the token at which the neuron is most active, and the next token or -1."""
    for _, tokens, index in top.contexts(neuron, width=1):
        yield tokens[index], tokens[index + 1] if index + 1 < len(tokens) else -1


found = []
for neuron in range(model.cfg.d_mlp):
    current, following = map(set, zip(*around(neuron), strict=True))
    if len(following) == 1 and -1 not in following and len(current) >= 3:
        found.append((float(top.values[neuron, 0]), neuron, following.pop()))
for value, neuron, token in sorted(found, reverse=True):
    print(f"neuron {neuron}: up to {value:.1f}, before {model.to_single_str_token(int(token))!r}")

# %% [markdown]
# The strongest of them is active before the end of "doesn't", "isn't" and "couldn't".

# %%
_, neuron, token = max(found)
token = int(token)
assert neuron == 334 and model.to_single_str_token(token) == "'t"
for value, tokens, index in top.contexts(neuron, width=8):
    before, at, after = (model.to_string(part) if len(part) else "" for part in np.split(tokens, [index, index + 1]))
    print(f"{value:5.1f}  {before!r} [{at}] {after!r}")

# %% [markdown]
# ## All activations, not only the strongest
#
# The strongest contexts show one end of a distribution, and the neuron was chosen by them. Is it a detector of "'t", so
# that a threshold separates the tokens before "'t" from all others? The test is in paragraphs that did not choose it:
# 30 with "'t" and 30 without. A harvest stores the activations of every token on disk, with the document and the
# position of each.

# %%
texts = [text for text in held_out if "n't" in text][:30] + [text for text in held_out if "'t" not in text][:30]
with tempfile.TemporaryDirectory() as folder:
    rows = batch.harvest(model, texts, name, folder, dtype="float16")[:]
values, tokens, documents = rows[name][:, neuron].astype(np.float32), rows["tokens"], rows["document"]
is_last = np.append(documents[1:] != documents[:-1], True)
before_t = np.append(tokens[1:] == token, False) & ~is_last
recall, false_alarms = (float((values[which] > 10).mean()) for which in (before_t, ~before_t))
print(f"{before_t.sum()} of {len(values):,} tokens are before \"'t\"")
print(f"above 10: {recall:.0%} of the tokens before \"'t\", and {false_alarms:.2%} of the others")
assert recall > 0.8 and false_alarms < 0.01

_, axes = plt.subplots(figsize=(7, 3))
bins = np.linspace(values.min(), values.max(), 60)
axes.hist([values[~before_t], values[before_t]], bins, stacked=True, log=True, label=["other tokens", "before 't"])
axes.set(xlabel=f"activation of neuron {layer}.{neuron}", ylabel="tokens")
axes.legend()
plt.show()

# %%
others = [at for at in np.argsort(-values) if not before_t[at] and not is_last[at]][:8]
for at in others:
    inside = slice(max(at - 8, int(np.argmax(documents == documents[at]))), at + 1)
    following = model.to_single_str_token(int(tokens[at + 1]))
    print(f"{values[at]:5.1f}  {model.to_string(tokens[inside])!r} then {following!r}")

# %% [markdown]
# ## What it writes
#
# The weights say what the neuron adds to each logit when it is active. The norms are folded into the weights, so
# `W_out @ W_U` only lacks the scale of the last norm.

# %%
writes = model.W_out[layer, neuron] @ model.W_U
promoted = [model.to_single_str_token(int(each)) for each in jnp.argsort(-writes)[:8]]
rank = int((writes > writes[token]).sum())
print(promoted, f'; "\'t" is number {rank + 1} of {model.cfg.d_vocab:,}')
assert promoted[0] == "’" and rank <= 3

# %% [markdown]
# It promotes apostrophes of all kinds. The corpus has only ASCII apostrophes, so its strongest contexts could not show
# this. Texts and weights are two views of a neuron, and each can mislead.
#
# ## Without it
#
# A hook sets the neuron to zero, and `batch.score` gives the log-probability of every token of the sixty paragraphs,
# with and without it.


# %%
def set_neuron(post, hook, value):
    return post.at[:, :, neuron].set(value)


removed = [(name, hook(set_neuron, value=0.0))]
whole, without = (np.concatenate(batch.score(model, texts, hooks=hooks)) for hooks in ([], removed))
is_t = np.concatenate([model.to_tokens(text)[0][1:] for text in texts]) == token
change = without - whole
print(f"log-probability of \"'t\": {whole[is_t].mean():.3f} with the neuron, {without[is_t].mean():.3f} without")
print(f"mean change: {change[is_t].mean():+.3f} for \"'t\", {change[~is_t].mean():+.4f} for other tokens")
assert abs(change[is_t].mean()) < 0.05 and abs(change[~is_t].mean()) < 0.01

# %% [markdown]
# There is almost no effect: other components predict "'t" after "doesn" too. A neuron can be interpretable and yet not
# necessary.
#
# ## Turned on by hand
#
# The value is data of the hook, so `vmap` runs the prompt with many values in one program. After "they did", an
# apostrophe is possible and unlikely.

# %%
prompt = "It was cold, but they did"
prompt_tokens = model.to_tokens(prompt)
shown = {label: model.to_single_token(label) for label in ("’", "'t", "'", " not")}
settings = jnp.linspace(0.0, 60.0, 13)


@jax.jit
@jax.vmap
def probabilities(value):
    logits = model.run_with_hooks(prompt_tokens, fwd_hooks=[(name, hook(set_neuron, value=value))])
    return jax.nn.softmax(logits[0, -1])[jnp.array(list(shown.values()))]


curves = np.asarray(probabilities(settings)).T
own = float(model.run_with_cache(prompt, names_filter=name)[1][name][0, -1, neuron])
apostrophes = curves[:3].sum(0)
print(f"activation without the hook: {own:.1f}; apostrophes: {apostrophes[0]:.4f} at 0, {apostrophes[-1]:.2f} at 60")
assert own < 5 and apostrophes[0] < 0.01 and apostrophes[-1] > 0.5
plot.lines(
    curves, [f"{value:.0f}" for value in settings], names=list(shown), xname="value of the neuron",
    unit="probability", title=f"After {prompt!r}",
)

# %% [markdown]
# ## Try this next
#
# - Neuron 394 of the same layer is active before "'t" too. Remove both. Do their effects add up?
# - Set `layer` to 22 or 12. Do earlier layers still have neurons that prepare a single next token?
# - Rank the features of a sparse autoencoder instead of neurons: `top_activations(..., encode=)`.
# - Which heads make the neuron active? Patch `blocks.*.attn.hook_z` from "they did" to "they didn" with
#   `activation_patch`. [docs/data_sets.md](../docs/data_sets.md) describes harvests for larger corpora.

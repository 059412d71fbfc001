# %% [markdown]
# # Indirect object identification
#
# **How does SmolLM2 know who gets the bag?**
#
# > When John and Mary went to the shops, John gave the bag to → Mary
#
# The task is that of [Wang et al. 2022](https://arxiv.org/abs/2211.00593), who explained it in GPT-2. This notebook
# goes from coarse to fine: in which layer, by which heads, from which position, and along which paths.

# %%
import jax.numpy as jnp
import numpy as np

from jaxlens import HookedTransformer, plot
from jaxlens.analysis import activation_patch, direct_logit_attribution, induction_scores, path_patch

model = HookedTransformer.from_pretrained("smollm2-135m-instruct")

# %% [markdown]
# ## Prompts
#
# Four templates, each with either name as the giver. The corrupted run of a prompt is the other prompt of its template.
# So only one token differs, the giver, and the answer is the opposite one.

# %%
templates = [
    ("When John and Mary went to the shops,{} gave the bag to", (" John", " Mary")),
    ("When Tom and James went to the park,{} gave the ball to", (" Tom", " James")),
    ("When Dan and Sid went to the shops,{} gave an apple to", (" Dan", " Sid")),
    ("After Martin and Amy went to the park,{} gave a drink to", (" Martin", " Amy")),
]
pairs = [(text, giver, names[1 - i]) for text, names in templates for i, giver in enumerate(names)]
clean = model.to_tokens([text.format(giver) for text, giver, receiver in pairs])
corrupted = clean.reshape(4, 2, -1)[:, ::-1].reshape(clean.shape)
givers = jnp.array([model.to_single_token(giver) for _, giver, _ in pairs])
receivers = jnp.array([model.to_single_token(receiver) for _, _, receiver in pairs])
roles = ["BOS", "When", "name 1", "and", "name 2", "went", "to", "the", "shops"]
roles += [",", "GIVER", "gave", "the", "bag", "to"]
GIVER = roles.index("GIVER")
differs = np.flatnonzero((clean != corrupted).any(0))
assert clean.shape == (8, len(roles)) and differs.tolist() == [GIVER]


def differences(logits):
    """The logit of the receiver minus that of the giver, for every prompt."""
    last, rows = logits[:, -1], jnp.arange(len(logits))
    return last[rows, receivers] - last[rows, givers]


def metric(logits):
    return differences(logits).mean()


logits, cache = model.run_with_cache(clean)
whole = float(metric(logits))
assert (differences(logits) > 0).all()
print(f"all {len(clean)} prompts are answered correctly; mean logit difference {whole:.2f}")

# %% [markdown]
# ## In which layer? The logit lens
#
# What would the logit difference be if the model stopped after a layer? The line is flat for two thirds of the layers
# and rises most in layer 23.

# %%
lens = [cache.logit_lens(targets=names[:, None], positions=slice(-1, None)).values for names in (receivers, givers)]
by_layer = np.asarray(lens[0] - lens[1])[1:, :, 0, 0].mean(1)  # the first entry is the embedding
steps = np.diff(by_layer, prepend=0)
assert steps.argmax() == 23 and abs(by_layer[:20]).max() < 0.25 * whole
plot.lines(by_layer, xname="after layer", unit="logits", title="Logit difference after each layer")

# %% [markdown]
# ## Which heads write it? Direct logit attribution
#
# The final residual stream is a sum of what every component wrote, so the logit difference is a sum, too. One head
# stands out.

# %%
to_receiver, to_giver = (
    direct_logit_attribution(model, None, names, unit="head", pos=-1, cache=cache).heads().mean(-1)
    for names in (receivers, givers)
)
direct = np.asarray(to_receiver - to_giver)
assert np.unravel_index(direct.argmax(), direct.shape) == (23, 3)
plot.bars(direct, count=10, unit="logits", title="What each head adds to the logit difference")

# %% [markdown]
# In GPT-2, the strongest heads copy the receiver's name. Does head 23.3? The table has its contribution to each of the
# two logits, and where it attends from the last token. It attends to the *giver* and lowers the giver's logit. The
# heads 23.0, 23.1, 23.2 and 23.7 attend to the names at the beginning and raise the logits of both, more that of the
# receiver.

# %%
pattern = cache["pattern", 23][:, :, -1].mean(0)  # [head source], from the last token
movers = [0, 1, 2, 7]
for head in [3, *movers]:
    names, giver = float(pattern[head, 2] + pattern[head, 4]), float(pattern[head, GIVER])
    print(
        f"23.{head}: receiver {to_receiver[23, head]:+.2f}, giver {to_giver[23, head]:+.2f}; "
        f"attends {names:.2f} to the first two names, {giver:.2f} to the giver"
    )
assert pattern[3].argmax() == GIVER and to_giver[23, 3] < -2 and abs(to_receiver[23, 3]) < 0.5
for head in movers:
    assert pattern[head, 2] + pattern[head, 4] > pattern[head, GIVER]
    assert to_receiver[23, head] > to_giver[23, head] > 0

# %% [markdown]
# ## From where? Patching the residual stream
#
# Put the clean residual stream into the corrupted run, at one layer and position at a time. All 450 patches are one
# compiled program. 1 means that the patch restores the whole logit difference.
#
# At first, everything is at the giver's position, where the prompts differ. In layers 20 to 23, it moves to the last
# position.

# %%
residual = activation_patch(model, corrupted, clean, metric, "resid_pre", ("layer", "pos"), progress=False).normalised
share = residual.values
assert share.size == 450
assert (share[:18, GIVER] > 0.9).all() and (share[:18, -1] < 0.1).all()
assert share[24, -1] - share[20, -1] > 0.6 and share[24, GIVER] < 0.3
plot.heatmap(residual, xlabels=roles, unit="share restored", title="Residual stream before each layer")

# %% [markdown]
# ## Which heads carry it? Patching heads
#
# The total effect of each head, through everything that follows. Heads 20.0 and 17.4 matter, though they add almost
# nothing to the logits directly: they act through later heads.

# %%
patched = activation_patch(model, corrupted, clean, metric, "z", ("layer", "head"), progress=False).normalised
for layer, head in ((20, 0), (17, 4)):
    print(f"{layer}.{head}: total {patched.values[layer, head]:.2f}, direct {direct[layer, head] / whole:.2f}")
    assert patched.values[layer, head] > 0.3 and abs(direct[layer, head]) < 0.05 * whole
strongest = [(int(at["layer"]), int(at["head"])) for at, _ in patched.strongest(3)]
assert strongest == [(23, 3), (20, 0), (17, 4)]
plot.heatmap(patched, unit="share restored", title="Output of each head")

# %% [markdown]
# ## Along which paths? Path patching
#
# `path_patch` changes only what one receiver reads from one sender. Where does the output of head 20.0 go? Its
# attention is on the giver, and it acts on the queries of the four heads of layer 23 that attend to the first two
# names. In the words of Wang et al., 20.0 is an S-inhibition head and these four are name movers: it tells them which
# of the two names to avoid.

# %%
heads = [(layer, head) for layer in range(21, 30) for head in range(model.cfg.n_heads)]
queries = path_patch(model, corrupted, clean, metric, "q", senders=[(20, 0)], receivers=heads, progress=False).change
into_queries = queries.values[0].reshape(9, model.cfg.n_heads)
found = np.argsort(-into_queries[23 - 21])[:4]
assert sorted(found.tolist()) == movers
assert set(np.argsort(-into_queries.ravel())[:4] // model.cfg.n_heads) == {23 - 21}
assert cache["pattern", 20][:, 0, -1].mean(0).argmax() == GIVER
plot.heatmap(
    into_queries, ylabels=range(21, 30), yname="layer", xname="head", unit="logits", title="20.0 → queries"
)  # fmt: skip

# %% [markdown]
# The name movers show it: if 20.0 alone has its corrupted output in the clean run, their attention moves from the
# receiver to the giver.

# %%
_, other = model.run_with_cache(corrupted, names_filter="blocks.20.attn.hook_z")


def corrupt_20_0(z, hook):
    return z.at[:, :, 0].set(other["z", 20][:, :, 0])


with model.hooks([("blocks.20.attn.hook_z", corrupt_20_0)]):
    _, without = model.run_with_cache(clean, names_filter="blocks.23.attn.hook_pattern")

at_receiver = jnp.where(clean[:, 2] == receivers, 2, 4)  # the first mention of each name
at_giver = jnp.where(clean[:, 2] == receivers, 4, 2)
rows, columns = jnp.arange(len(clean)), jnp.array(movers)
attention = np.array([
    [pattern["pattern", 23][rows, :, -1, at][:, columns].mean() for at in (at_receiver, at_giver)]
    for pattern in (cache, without)
])  # fmt: skip
assert attention[0, 0] > 1.5 * attention[0, 1] and attention[1, 0] < attention[1, 1]
plot.heatmap(
    attention, ylabels=["clean", "20.0 corrupted"], xlabels=["receiver", "giver"], unit="attention",
    title="Attention of the name movers",
)  # fmt: skip

# %% [markdown]
# And what do 23.3 and 20.0 read at the giver's position? For 23.3, it is the output of the very first MLP: the token
# itself. So 23.3 needs no earlier head: it lowers the logit of the name that it attends to, whichever that is. (Heads
# 23.3 to 23.5 share keys and values, so this patch reaches all three.)
#
# For 20.0, it is mostly the output of head 17.4. From the giver, 17.4 attends to the token *after* the earlier mention
# of the same name: it is an induction head, and here it signals that the name is a repetition.

# %%
kv_of_3, kv_of_0 = 3 // 3, 0 // 3  # three query heads share a key/value head
mlps = list(range(23))
into_23_3 = path_patch(
    model, corrupted, clean, metric, "v", senders=mlps, receivers=[(23, kv_of_3)], progress=False
).change.values[:, 0]  # fmt: skip
assert into_23_3.argmax() == 0 and into_23_3[0] > 5 * into_23_3[1:].max()

earlier = [(layer, head) for layer in range(14, 20) for head in range(model.cfg.n_heads)]
into_20_0 = path_patch(
    model, corrupted, clean, metric, "v", senders=earlier, receivers=[(20, kv_of_0)], progress=False
).change.values[:, 0]  # fmt: skip
assert earlier[into_20_0.argmax()] == (17, 4)

after_giver, after_receiver = (
    float(cache["pattern", 17][rows, 4, GIVER, names + 1].mean()) for names in (at_giver, at_receiver)
)
assert after_giver > 0.6 and after_receiver < 0.1 and induction_scores(model)[17, 4] > 0.5
print(f"17.4 attends to the token after the giver's first mention: {after_giver:.2f}, receiver's: {after_receiver:.2f}")
plot.together(
    plot.bars(into_23_3, [f"mlp {layer}" for layer in mlps], count=5, unit="logits", title="MLPs → values of 23.3"),
    plot.bars(
        into_20_0, [f"{layer}.{head}" for layer, head in earlier], count=5, unit="logits",
        title="Heads → values of 20.0",
    ),
    title="What the two heads read",
)  # fmt: skip

# %% [markdown]
# ## The circuit
#
# | component | role | found by |
# |---|---|---|
# | 17.4 | an induction head: at the giver, finds the earlier mention | path patching into the values of 20.0 |
# | 20.0 | at the last position, tells the name movers which name to avoid | path patching into queries |
# | 23.0, 23.1, 23.2, 23.7 | attend to the first two names and raise their logits | logit attribution, attention |
# | 23.3 | attends to the giver and lowers its logit | logit attribution, path patching from MLPs |
#
# The first three rows resemble GPT-2. The last does not: the strongest head of this model works by excluding the giver.
# A circuit found by patching is a claim, so the last cell tests it. If these seven heads have their clean outputs in
# the corrupted run, the model answers almost as in the clean run. So they suffice; whether each is necessary is another
# question.

# %%
circuit = [(17, 4), (20, 0), *((23, head) for head in movers), (23, 3)]
_, outputs = model.run_with_cache(clean, names_filter="blocks.*.attn.hook_z")


def restored(heads):
    """The share of the logit difference that is restored if these heads have their clean outputs."""
    def restore(z, hook):
        kept = jnp.array([head for layer, head in heads if layer == hook.layer()])
        return z.at[:, :, kept].set(outputs["z", hook.layer()][:, :, kept])

    hooks = [(f"blocks.{layer}.attn.hook_z", restore) for layer in sorted({layer for layer, _ in heads})]
    value = float(metric(model.run_with_hooks(corrupted, fwd_hooks=hooks)))
    return (value + whole) / (2 * whole)  # the corrupted run has the opposite logit difference


assert abs(float(metric(model(corrupted))) + whole) < 1e-3
shares = {"the circuit": restored(circuit), "23.3": restored([(23, 3)]), "the others": restored(circuit[:-1])}
generator = np.random.default_rng(0)
sets = [[divmod(int(head), 9) for head in generator.choice(270, 7, replace=False)] for _ in range(10)]
shares["7 random heads, mean of 10 sets"] = float(np.mean([restored(heads) for heads in sets]))
assert shares["the circuit"] > 0.8 and shares["7 random heads, mean of 10 sets"] < 0.3
plot.bars(list(shares.values()), list(shares), unit="share restored", title="Restoring the circuit")

# %% [markdown]
# ## Try this next
#
# - Use noising: pass `direction="noising"` to `activation_patch`. Which heads of the circuit are necessary?
# - Exchange the names at the beginning ("When Mary and John …") instead of the giver. Which paths remain?
# - Heads 29.0 and 29.1 nearly cancel. What do they attend to, and what happens without both?
# - Draw all direct paths to the logits: `path_patch(model, corrupted, clean, metric, "logits")`. How do they differ
#   from the direct logit attribution, and why?

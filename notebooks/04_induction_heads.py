# %% [markdown]
# # Induction heads, from scratch
#
# **When does a model learn to copy, and which head does it?**
#
# An induction head looks for an earlier occurrence of the current token and predicts the token that followed it
# ([Olsson et al. 2022](https://arxiv.org/abs/2209.11895)). It needs two layers: a head of the first layer writes which
# token came before, and the head of the second layer searches for it. This notebook trains a small model in which such
# a head appears suddenly.

# %%
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlens import Config, HookedTransformer, plot
from jaxlens.analysis import induction_scores, previous_token_scores

# %% [markdown]
# ## Model and data
#
# Two layers of attention without MLPs. A prompt is a random sequence that repeats with a random period of 8 to 24
# tokens. Nothing about it can be predicted, except what has occurred before. The period varies, because with a fixed
# period one layer would suffice: it could learn to attend a fixed number of positions back.

# %%
N_TOKENS, LENGTH, HALF = 64, 48, 24
model = HookedTransformer(Config(
    n_layers=2, n_heads=2, d_model=64, d_head=32, d_vocab=N_TOKENS, n_ctx=LENGTH, attn_only=True,
    default_prepend_bos=False, seed=0,
))  # fmt: skip


def prompts(key, n_prompts, shortest=8, longest=HALF):
    """Random tokens [prompt position] that repeat with a random period, or with a given one."""
    of_period, of_tokens = jax.random.split(key)
    period = jax.random.randint(of_period, (n_prompts, 1), shortest, longest + 1)
    tokens = jax.random.randint(of_tokens, (n_prompts, LENGTH), 0, N_TOKENS)
    return jnp.take_along_axis(tokens, jnp.arange(LENGTH) % period, axis=1)


test_prompts = prompts(jax.random.key(2), 64, shortest=HALF)
assert (test_prompts[:, :HALF] == test_prompts[:, HALF:]).all()


def half_losses(model):
    """The loss on the first and on the second half of the test prompts. Only the second can be predicted."""
    loss = model(test_prompts, return_type="loss", loss_per_token=True).mean(0)  # loss[i] is that of token i + 1
    return jnp.stack([loss[: HALF - 1].mean(), loss[HALF:].mean()])


np.round(half_losses(model), 2), np.round(np.log(N_TOKENS), 2)  # a guess has the loss log(64)

# %% [markdown]
# ## Training
#
# The whole training is one compiled program: a scan over 60 checkpoints, each of which is a scan over 10 steps of Adam.
# At each checkpoint it measures losses and the scores of all heads. The analysis functions are ordinary JAX code,
# so they run inside the scan.

# %%
N_CHECKPOINTS, STEPS, BATCH = 60, 10, 32
optimizer = optax.adam(3e-3)


def loss_of(params, tokens):
    return model.with_params(params)(tokens, return_type="loss")


def step(carry, key):
    params, state = carry
    gradients = jax.grad(loss_of)(params, prompts(key, BATCH))
    updates, state = optimizer.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), None


def checkpoint(carry, keys):
    now = model.with_params(carry[0])
    measured = {
        "loss": half_losses(now),
        "induction": induction_scores(now, batch_size=16, length=HALF),
        "previous": previous_token_scores(now, batch_size=16, length=HALF),
    }
    return jax.lax.scan(step, carry, keys)[0], measured


@jax.jit
def train(params, key):
    keys = jax.random.split(key, (N_CHECKPOINTS, STEPS))
    (params, _), history = jax.lax.scan(checkpoint, (params, optimizer.init(params)), keys)
    return params, history


params, history = train(model.params, jax.random.key(1))
trained = model.with_params(params)
steps = STEPS * np.arange(N_CHECKPOINTS)
first, second = half_losses(trained)
assert second < 0.5 and first > 4
print(f"after {N_CHECKPOINTS * STEPS} steps: loss {first:.2f} on the first half, {second:.2f} on the second")

# %% [markdown]
# ## The phase change
#
# A model that knows which 24 tokens occurred, but not their order, has the loss log(24) = 3.18 on the second half. The
# training reaches it slowly. Below it, the order matters: within 150 steps, the loss falls to less than half. The loss
# on the first half does not fall, because nothing there can be predicted.

# %%
losses = np.asarray(history["loss"])
start = int((losses[:, 1] < np.log(HALF)).argmax())
end = start + 150 // STEPS
assert np.round(np.log(HALF), 2) == 3.18 and losses[end, 1] < np.log(HALF) / 2
assert losses[:, 0].min() > np.log(N_TOKENS) - 0.2
for i in (start, end):
    print(f"step {steps[i]}: loss {losses[i, 1]:.2f} on the second half")
plot.lines(losses.T, steps, names=["first half", "second half"], xname="step", unit="loss", title="Loss in training")

# %% [markdown]
# The heads change at the same time. The induction score is the attention from a repeated token to the token after its
# first occurrence: it rises in layer 1 only. The previous-token score rises in layer 0.

# %%
induction, previous = (np.asarray(history[name]).reshape(-1, 4) for name in ("induction", "previous"))
heads = ["0.0", "0.1", "1.0", "1.1"]
strongest = int(induction[-1].argmax())
assert strongest >= 2 and induction[-1, strongest] > 0.4 and induction[-1, :2].max() < 0.1
assert induction[start, strongest] < 0.5 * induction[end, strongest]
earlier = int(previous[-1].argmax())
assert earlier < 2 and previous[-1, earlier] > 2 * previous[0, earlier] and previous[-1, 2:].max() < 0.1
print(f"the strongest induction head is {heads[strongest]}, the strongest previous-token head {heads[earlier]}")
plot.together(
    plot.lines(induction.T, steps, names=heads, xname="step", unit="attention", title="Induction score"),
    plot.lines(previous.T, steps, names=heads, xname="step", unit="attention", title="Previous-token score"),
    title="Scores of heads in training",
)

# %% [markdown]
# The pattern of the strongest head on one prompt. Its bright diagonal is 23 positions below the main one: each token of
# the second half attends to the token after its first occurrence.

# %%
_, cache = trained.run_with_cache(test_prompts[:1], names_filter="blocks.1.attn.hook_pattern")
pattern = cache["pattern", 1][0, strongest - 2]
diagonals = [float(jnp.diagonal(pattern, -back)[-HALF:].mean()) for back in range(LENGTH - HALF)]
assert np.argmax(diagonals) == HALF - 1 == 23
plot.heatmap(pattern, xname="source", yname="query", unit="attention", title=f"Attention of head {heads[strongest]}")

# %% [markdown]
# ## Which head is it?
#
# Attention shows where a head looks, not whether the model needs it. So remove each head in turn: one `vmap` over
# masks. The model needs the strongest induction head and the strongest previous-token head. It hardly needs the other
# head of layer 1, although its induction score is not small either.


# %%
def loss_without(mask):
    """The loss on the second half if the outputs of heads are multiplied by a mask [layer head]."""
    with trained.hooks([("blocks.*.attn.hook_z", lambda z, hook: z * mask[hook.layer()][:, None])]):
        return half_losses(trained)[1]


masks = 1 - jnp.eye(4).reshape(4, 2, 2)  # [removed head, layer, head]
rise = jax.vmap(loss_without)(masks) - second
other = 5 - strongest
assert rise[strongest] > 0.5 and rise[earlier] > 0.5 and rise[other] < 0.2 * rise[strongest]
assert induction[-1, other] > 0.2
plot.bars(rise, heads, unit="loss", title="Rise of the loss without each head")

# %% [markdown]
# ## How does it find the token?
#
# An induction head composes with layer 0 through its keys: the key at a position says which token came *before*. Test
# it: remove the output of a head of layer 0 from what the queries, the keys or the values of layer 1 read, and from
# nothing else. The largest effect is that of the previous-token head on the keys. The other head of layer 0 acts mostly
# on the values.


# %%
def remove(value, hook, head):
    return value - results[:, :, head][:, :, None]


_, cache = trained.run_with_cache(test_prompts, names_filter="blocks.0.attn.hook_result")
results = cache["result", 0]  # [batch pos head d_model]
effects = np.zeros((2, 3))
for head in range(2):
    for i, reader in enumerate("qkv"):
        with trained.hooks([(f"blocks.1.hook_{reader}_input", functools.partial(remove, head=head))]):
            effects[head, i] = half_losses(trained)[1] - second
assert divmod(int(effects.argmax()), 3) == (earlier, 1)
assert rise[1 - earlier] > 0.2 and effects[1 - earlier].argmax() == 2
plot.heatmap(
    effects, xlabels=["queries", "keys", "values"], ylabels=["0.0", "0.1"], xname="read by", yname="head",
    unit="rise of the loss", title="One path removed",
)  # fmt: skip

# %% [markdown]
# ## Try this next
#
# - Where does the other head of layer 0 attend, and what do the values of layer 1 need it for?
# - Train with one layer (`n_layers=1`). How far does the loss on the second half fall? Then fix the period: pass
#   `shortest=HALF` in `step`.
# - Train several seeds at once: `jax.vmap(train, in_axes=(None, 0))` over keys. Does the phase change come at the same
#   step?
# - Set `positional_embedding_type="rotary"`. Is the previous-token head found earlier?
# - Score the heads of a language model: `induction_scores(HookedTransformer.from_pretrained("smollm2-135m-instruct"))`.

# %% [markdown]
# # Steering while generating
#
# **How strongly can a direction steer a model before the text breaks?**
#
# Adding a direction to the residual stream changes what a model writes
# ([Turner et al. 2023](https://arxiv.org/abs/2308.10248)). This notebook takes a direction of sentiment from
# contrasting sentences, measures its effect and its cost over many strengths, and then steers a generation.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from jaxlens import HookedTransformer, hook, plot, steer

model = HookedTransformer.from_pretrained("smollm2-135m-instruct")

# %% [markdown]
# ## A direction in every layer
#
# The mean residual stream of four positive sentences, minus that of four negative ones. BOS is left out.

# %%
positive = [
    "I love this, it is wonderful", "What a great and happy day", "The film was excellent and moving",
    "She was delighted with the beautiful gift",
]  # fmt: skip
negative = [
    "I hate this, it is awful", "What a bad and sad day", "The film was terrible and boring",
    "She was disgusted with the ugly gift",
]  # fmt: skip


def averages(texts):
    """The mean residual stream after each layer, without BOS: [text layer d_model]."""
    caches = [model.run_with_cache(text, names_filter="blocks.*.hook_resid_post")[1] for text in texts]
    return jnp.stack([cache.stack_activation("resid_post")[:, 0, 1:].mean(1) for cache in caches])


directions = averages(positive).mean(0) - averages(negative).mean(0)  # [layer d_model]
LAYER = 8
direction = directions[LAYER]
ratio = float(jnp.linalg.norm(direction) / jnp.linalg.norm(averages(positive)[:, LAYER], axis=-1).mean())
assert directions.shape == (30, 576)
print(f"layer {LAYER}: the direction is {ratio:.2f} times as long as the mean residual stream of a sentence")

# %% [markdown]
# Does it generalize? Project other sentences on it. Every positive sentence is above every negative one.

# %%
others = [
    "Our holiday was fun and sunny", "He thanked us for the lovely dinner", "The team celebrated a brilliant win",
    "Our holiday was cold and miserable", "He blamed us for the disgusting dinner", "The team mourned a painful loss",
]  # fmt: skip
unit = direction / jnp.linalg.norm(direction)
projections = averages(others)[:, LAYER] @ unit
projections -= projections.mean()
assert projections[:3].min() > projections[3:].max()
plot.bars(projections, others, title="Projection of other sentences, minus the mean")

# %% [markdown]
# ## What to measure
#
# The effect: the log odds of positive against negative adjectives as the next word of four neutral beginnings. The
# cost: the loss of the steered model on a plain text, in nats per token.

# %%
beginnings = [
    "The weather today is", "I think that the new restaurant is", "My neighbour told me that the party was",
    "The book that I read last week was",
]  # fmt: skip
good = [model.to_single_token(word) for word in (" good", " great", " wonderful", " beautiful", " excellent", " nice")]
bad = [model.to_single_token(word) for word in (" bad", " terrible", " awful", " ugly", " horrible", " sad")]
plain_text = (
    "Water boils at a lower temperature on a mountain, because the pressure of the air is lower there. Most of the "
    "bread in this region is made of wheat, and some of it is made of rye. The train to the city leaves every hour."
)
plain = model.to_tokens(plain_text)
tokens = model.to_tokens(beginnings, padding_side="right")
last = jnp.array([model.to_tokens(text).shape[1] - 1 for text in beginnings])


def log_odds(logits):
    """Positive against negative adjectives, for each beginning."""
    log_probs = jax.nn.log_softmax(logits[jnp.arange(len(last)), last])
    good_mass, bad_mass = (jax.nn.logsumexp(log_probs[:, jnp.array(words)], axis=-1) for words in (good, bad))
    return good_mass - bad_mass


def effect(hooks):
    return log_odds(model.run_with_hooks(tokens, fwd_hooks=hooks))


def cost(hooks):
    return model.run_with_hooks(plain, return_type="loss", fwd_hooks=hooks)


np.round(effect([]), 2), float(cost([]))

# %% [markdown]
# ## A sweep over strengths is one vmap
#
# `steer` makes hooks with data: direction and strength are arrays. So 33 strengths are one `vmap` of the forward pass.

# %%
strengths = jnp.arange(-8, 8.5, 0.5)
assert len(strengths) == 33
effects = jax.vmap(lambda strength: effect(steer(direction, LAYER, strength=strength)))(strengths)
plot.lines(
    effects.T, [f"{strength:g}" for strength in strengths], names=beginnings, xname="strength", unit="log odds",
    title="Positive against negative next words",
)  # fmt: skip

# %% [markdown]
# Around zero, the effect is steep: a step of one changes the log odds by about two, in both directions. To the negative
# side, it is flat from -1 to -4. To the positive side, it levels off gradually.

# %%
mean_effect = {float(strength): float(value) for strength, value in zip(strengths, effects.mean(1), strict=True)}
step_up, step_down = mean_effect[1] - mean_effect[0], mean_effect[0] - mean_effect[-1]
assert 1.8 < step_up < 2.7 and 1.8 < step_down < 2.7 and abs(mean_effect[-4] - mean_effect[-1]) < 0.3
steps_up = [mean_effect[end] - mean_effect[start] for start, end in ((0, 1), (1, 2), (2, 4), (4, 8))]
assert steps_up == sorted(steps_up, reverse=True)
print({strength: round(mean_effect[strength], 2) for strength in (-8, -4, -2, -1, 0, 1, 2, 4, 8)})

# %% [markdown]
# ## The cost
#
# The same sweep of the loss on plain text. Strength 1 costs little in both directions. At strength 8, the loss has
# risen by more than 3 nats per token: a strength is always a compromise.

# %%
costs = jax.vmap(lambda strength: cost(steer(direction, LAYER, strength=strength)))(strengths)
extra = {float(strength): float(value) for strength, value in zip(strengths, costs - cost([]), strict=True)}
assert extra[1] < 0.3 and extra[-1] < 0.3 and min(extra[8], extra[-8]) > 3
print({strength: round(extra[strength], 2) for strength in (-8, -4, -2, -1, 1, 2, 4, 8)})
plot.lines(
    costs, [f"{strength:g}" for strength in strengths], xname="strength", unit="loss", title="Loss on plain text"
)  # fmt: skip

# %% [markdown]
# ## Is it this direction, or any?
#
# The control: 32 random directions of the same length, at strength 1. Again one `vmap`, now over directions.

# %%
random = jax.random.normal(jax.random.key(0), (32, model.cfg.d_model))
random *= jnp.linalg.norm(direction) / jnp.linalg.norm(random, axis=-1, keepdims=True)
changes = jax.vmap(lambda direction: effect(steer(direction, LAYER)).mean())(random) - effect([]).mean()
assert abs(changes).max() < 0.5 * step_up
print(f"this direction: {step_up:+.2f}; 32 random ones: {changes.mean():+.2f} ± {changes.std():.2f}")
print(f"largest change by a random direction: {abs(changes).max():.2f}")

# %% [markdown]
# ## Which layer?
#
# Each layer has its own direction. The derivative with respect to 30 strengths gives the effect of steering each
# layer, to first order, from a single backward pass. The exact effect at strength 1 is a `vmap` over layers.


# %%
def add_per_layer(resid, hook, directions, strengths):
    return resid + strengths[hook.layer()] * directions[hook.layer()]


def effect_per_layer(strengths):
    hooks = [("blocks.*.hook_resid_post", hook(add_per_layer, directions=directions, strengths=strengths))]
    return effect(hooks).mean()


zero = jnp.zeros(model.cfg.n_layers)
first_order = jax.grad(effect_per_layer)(zero)
exact = jax.vmap(effect_per_layer)(jnp.eye(model.cfg.n_layers)) - effect_per_layer(zero)
assert abs(exact[LAYER] - step_up) < 1e-3
assert np.corrcoef(first_order, exact)[0, 1] > 0.5
plot.lines(
    jnp.stack([exact, first_order]), names=["strength 1", "derivative at 0"], xname="layer", unit="log odds",
    title="Effect of steering each layer",
)  # fmt: skip

# %% [markdown]
# ## Generate
#
# Strengths can differ between the rows of a batch. So one call generates with all of them, in one compiled loop. Small
# strengths change the tone. Large ones break the text.

# %%
rows = jnp.array([-6.0, -2.0, -1.0, 0.0, 1.0, 2.0, 6.0])
hooks = steer(direction, LAYER, strength=rows)
written = {
    beginning: model.generate([beginning] * len(rows), 16, do_sample=False, fwd_hooks=hooks, verbose=False)
    for beginning in beginnings
}  # fmt: skip
for beginning, texts in written.items():
    print(beginning)
    for strength, text in zip(rows, texts, strict=True):
        print(f"  {strength:+.0f}  …{text.removeprefix(beginning)!r}")

# %% [markdown]
# How likely does the model without steering find these texts? The line shows the mean log-probability of a generated
# token. Unsteered text is the likeliest, and that of the two largest strengths is the least likely.

# %%
def mean_log_prob(beginning, text):
    """The mean log-probability of the tokens after the beginning, without steering."""
    first = model.to_tokens(beginning).shape[1] - 1
    return -float(model(text, return_type="loss", loss_per_token=True)[0, first:].mean())


fluency = np.array([[mean_log_prob(beginning, text) for text in texts] for beginning, texts in written.items()]).mean(0)
assert rows[fluency.argmax()] == 0 and fluency[[0, -1]].max() < fluency[1:-1].min()
plot.lines(
    fluency, [f"{strength:+g}" for strength in rows], xname="strength", unit="log-probability per token",
    title="Steered text, judged by the model without steering",
)  # fmt: skip

# %% [markdown]
# Hooks know the step of the generation. So steering can be limited to new tokens, or fade out.

# %%
for name, options in {
    "all tokens": {"strength": 3.0},
    "the prompt": {"strength": 3.0, "positions": "prompt"},
    "new tokens": {"strength": 3.0, "positions": "new"},
    "fading": {"strength": lambda step: 3.0 * 0.5**step},
}.items():
    hooks = steer(direction, LAYER, **options)
    print(f"{name}: {model.generate(beginnings[0], 16, do_sample=False, fwd_hooks=hooks, verbose=False)!r}")

# %% [markdown]
# ## Try this next
#
# - Steer several layers at once: `steer(direction, [6, 8, 10], strength=0.7)`. Is the compromise better?
# - The direction also contains topics of the eight sentences. Take more pairs that differ in one word only.
# - Learn the direction: maximize `effect` minus a multiple of `cost` with `jax.grad` and optax, from zero.
# - Subtract the direction instead of adding it: project it out with a hook that returns
#   `resid - (resid @ unit)[..., None] * unit`, and ask for the sentiment of a sentence.

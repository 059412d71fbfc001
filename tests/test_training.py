"""Models learn: from scratch with optax under jit, through an intervention, and until induction heads appear."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlens import Config, HookedTransformer, hook
from jaxlens.config import INIT_MODES

TINY = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "d_mlp": 32, "d_vocab": 23, "n_ctx": 12}
WIDE = {"n_layers": 3, "d_model": 96, "n_heads": 6, "d_head": 32, "d_mlp": 160, "d_vocab": 200, "n_ctx": 64}


def fixed_batch() -> jax.Array:
    return jax.random.randint(jax.random.key(7), (4, TINY["n_ctx"]), 0, TINY["d_vocab"])


def loss_of(model, tokens):
    return model(tokens, return_type="loss")


# --- initial weights


def expected_deviation(mode: str, shape: tuple[int, ...], d_model: int) -> float:
    """What the paper of each mode says for a weight of one layer, [in, out] or [heads, in, out]."""
    fan_in = shape[-2]
    fan_out = math.prod(shape) // fan_in
    if mode == "gpt2":
        return 0.8 / d_model**0.5
    return (2 / (fan_in + fan_out if mode.startswith("xavier") else fan_in)) ** 0.5


@pytest.mark.parametrize("mode", INIT_MODES)
def test_initial_weights_have_the_deviation_of_their_mode(mode):
    params = HookedTransformer(Config(**WIDE, init_mode=mode), seed=1).params
    for name, value in params.items():
        if not name.rpartition(".")[2].startswith("W_"):
            assert jnp.all(value == name.endswith(".w")), name
            continue
        layer = value[0] if name.startswith("blocks.") else value
        expected = expected_deviation(mode, layer.shape, WIDE["d_model"])
        assert jnp.std(value) == pytest.approx(expected, rel=0.03), name
        assert jnp.mean(value) == pytest.approx(0, abs=0.03 * expected), name
        if mode.endswith("uniform"):
            assert jnp.max(jnp.abs(value)) <= 3**0.5 * expected * 1.001, name
        else:
            assert jnp.max(jnp.abs(value)) > 3 * expected, name


def test_the_initializer_range_is_a_deviation_or_a_gain():
    small, large = (
        HookedTransformer(Config(**WIDE, init_mode="xavier_normal", initializer_range=gain)).params["blocks.*.mlp.W_in"]
        for gain in (0.5, 1.0)
    )
    np.testing.assert_allclose(2 * small, large, rtol=1e-6)
    chosen = HookedTransformer(Config(**WIDE, initializer_range=0.02)).params["embed.W_E"]
    assert jnp.std(chosen) == pytest.approx(0.02, rel=0.03)


def test_a_seed_decides_the_weights():
    first, again, other = (HookedTransformer(Config(**TINY), seed=seed).params for seed in (0, 0, 1))
    assert all(jnp.array_equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if name.rpartition(".")[2].startswith("W_")]
    assert not any(jnp.array_equal(first[name], other[name]) for name in drawn)


# --- training from scratch


@pytest.mark.parametrize("mode", INIT_MODES)
def test_a_model_learns_a_batch(mode):
    model = HookedTransformer(Config(**TINY, init_mode=mode), seed=0)
    optimizer, tokens = optax.adamw(1e-2), fixed_batch()
    untouched = model.params

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(lambda params: loss_of(model.with_params(params), tokens))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state, losses = untouched, optimizer.init(untouched), []
    for _ in range(60):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]
    assert float(loss_of(model, tokens)) == pytest.approx(losses[0], rel=1e-5)
    moved = {name for name in params if not jnp.array_equal(params[name], untouched[name])}
    # a bias of the keys adds the same to all scores of a query, which a softmax does not see
    assert moved >= set(params) - {"blocks.*.attn.b_K"}


def test_the_model_itself_is_what_the_optimizer_trains():
    model, tokens = HookedTransformer(Config(**TINY), seed=0), fixed_batch()
    optimizer = optax.adamw(1e-2, mask=lambda model: jax.tree.map(lambda weight: weight.ndim > 1, model))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(model, state):
        loss, gradient = jax.value_and_grad(loss_of)(model, tokens)
        assert isinstance(gradient, HookedTransformer)
        updates, state = optimizer.update(gradient, state, model)
        return optax.apply_updates(model, updates), state, loss

    trained, state = jax.tree.map(jnp.copy, model), optimizer.init(model)
    losses = []
    for _ in range(60):
        trained, state, loss = step(trained, state)
        losses.append(float(loss))
    assert isinstance(trained, HookedTransformer)
    assert losses[-1] < 0.2 * losses[0]
    assert float(loss_of(trained, tokens)) < losses[-1]
    assert trained.params.keys() == model.params.keys()


def test_both_ways_of_training_are_the_same():
    model, tokens = HookedTransformer(Config(**TINY), seed=0), fixed_batch()
    by_model = jax.jit(jax.grad(loss_of))(model, tokens).params
    by_params = jax.jit(jax.grad(lambda params: loss_of(model.with_params(params), tokens)))(model.params)
    for name, gradient in by_params.items():
        np.testing.assert_allclose(by_model[name], gradient, rtol=1e-5, atol=1e-7, err_msg=name)


# --- training through an intervention


def steer(value, hook, vector):
    return value + vector


def test_a_steering_vector_learns_to_make_the_model_say_a_token():
    model, tokens, wanted = HookedTransformer(Config(**TINY), seed=0), fixed_batch(), 5
    optimizer = optax.adam(0.1)

    def loss(vector, model):
        edit = hook(steer, vector=vector)
        logits = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", edit)])
        return -jnp.mean(jax.nn.log_softmax(logits)[..., wanted])

    @jax.jit
    def step(vector, state, model):
        value, gradient = jax.value_and_grad(loss)(vector, model)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(vector, updates), state, value

    vector = jnp.zeros(model.cfg.d_model)
    state, losses = optimizer.init(vector), []
    for _ in range(60):
        vector, state, value = step(vector, state, model)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    # the vector means the same to every kind of hook, eager ones too
    plain = [("blocks.0.hook_resid_post", lambda value, hook: value + vector)]
    assert (jnp.argmax(model(tokens), -1) == wanted).mean() < 0.5
    assert (jnp.argmax(model.run_with_hooks(tokens, fwd_hooks=plain), -1) == wanted).mean() > 0.9
    np.testing.assert_allclose(loss(vector, model), jax.jit(loss)(vector, model), rtol=1e-5)


def test_a_vector_for_every_layer_gets_a_gradient_from_every_layer():
    """One hook on all layers, whose data has a row for each: the gradient of a row is that layer's own."""
    model, tokens = HookedTransformer(Config(**TINY), seed=0), fixed_batch()

    def steer_rows(value, hook, rows):
        return value + rows[hook.layer()]

    def loss(rows):
        return model.run_with_hooks(
            tokens, return_type="loss", fwd_hooks=[("blocks.*.hook_resid_pre", hook(steer_rows, rows=rows))]
        )

    gradient = jax.jit(jax.grad(loss))(jnp.zeros((model.cfg.n_layers, model.cfg.d_model)))
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True, names_filter="blocks.*.hook_resid_pre")
    for layer in range(model.cfg.n_layers):
        expected = cache[f"blocks.{layer}.hook_resid_pre_grad"].sum((0, 1))
        np.testing.assert_allclose(gradient[layer], expected, rtol=1e-4, atol=1e-6)


# --- induction heads

LENGTH, VOCABULARY, BATCH, PERIODS = 40, 64, 32, (14, 20)
CHANCE = math.log(VOCABULARY)


def repeated_tokens(key, periods=PERIODS) -> tuple[jax.Array, jax.Array]:
    """Random sequences that repeat, each with a period of its own: with one period for all, looking back by a fixed
    distance would do. Gives tokens [b p] and periods [b 1]."""
    of_period, of_tokens = jax.random.split(key)
    period = jax.random.randint(of_period, (BATCH, 1), periods[0], periods[1] + 1)
    tokens = jax.random.randint(of_tokens, (BATCH, LENGTH), 0, VOCABULARY)
    return jnp.take_along_axis(tokens, jnp.arange(LENGTH) % period, axis=1), period


def repetition_loss(model, key, fwd_hooks=(), periods=PERIODS):
    """How surprised the model is by tokens that it can know: those whose predecessor has occurred one period before."""
    tokens, period = repeated_tokens(key, periods)
    losses = model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=fwd_hooks)
    known = jnp.arange(LENGTH - 1) >= period
    return jnp.sum(losses * known) / jnp.sum(known)


def untrained() -> HookedTransformer:
    """Positions only where attention decides where to look: with positions in the residual stream about one run in ten
    finds the answer a place further on, where a head of layer 0 has left it, and the scores below miss that."""
    cfg = Config(
        n_layers=2, d_model=64, n_heads=4, d_head=16, d_vocab=VOCABULARY, n_ctx=LENGTH, attn_only=True,
        positional_embedding_type="shortformer",
    )  # fmt: skip
    return HookedTransformer(cfg, seed=0)


@pytest.fixture(scope="module")
def trained() -> HookedTransformer:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-3, b2=0.99, weight_decay=0.01))

    @jax.jit
    def train(model, keys):
        def step(carry, key):
            model, state = carry
            updates, state = optimizer.update(jax.grad(repetition_loss)(model, key), state, model)
            return (optax.apply_updates(model, updates), state), None

        return jax.lax.scan(step, (model, optimizer.init(model)), keys)[0][0]

    return train(untrained(), jax.random.split(jax.random.key(1), 600))


def attention_to(pattern: np.ndarray, queries: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The mean attention of every head [n] from marked queries [b p] to the position `offset` [b 1] before them."""
    source = np.maximum(np.arange(LENGTH) - offset, 0)
    attention = np.take_along_axis(pattern, source[:, None, :, None], axis=-1)[..., 0]
    return (attention * queries[:, None]).sum((0, 2)) / queries.sum()


def head_scores(model, key) -> tuple[np.ndarray, np.ndarray]:
    """How much each head of layer 0 attends to the previous token, and each head of layer 1 to the token that followed
    the previous occurrence of the current one."""
    tokens, period = (np.asarray(array) for array in repeated_tokens(key))
    _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_pattern")
    first, second = (np.asarray(cache["pattern", layer]) for layer in range(2))
    all_but_first = np.broadcast_to(np.arange(LENGTH) >= 1, tokens.shape)
    previous = attention_to(first, all_but_first, np.ones_like(period))
    return previous, attention_to(second, np.arange(LENGTH) >= period, period - 1)


def test_induction_heads_appear(trained):
    key, before = jax.random.key(2), untrained()
    assert repetition_loss(before, key) == pytest.approx(CHANCE, rel=0.1)
    assert repetition_loss(trained, key) < 0.1 * CHANCE
    previous, induction = head_scores(trained, key)
    previous_before, induction_before = head_scores(before, key)
    assert induction_before.max() < 0.1
    assert induction.max() > 0.4
    # heads share this work as they please
    assert previous.sum() > 2 * previous_before.sum()
    assert previous.max() > 0.25


def test_induction_needs_the_layer_before(trained):
    """Layer 1 finds what followed a token because layer 0 has told each position what preceded it."""

    def ablate(value, hook):
        return jnp.zeros_like(value)

    def spread(value, hook):
        """Every query looks alike at all it can see: the layer still writes, but not about the previous token."""
        return jnp.tril(jnp.ones_like(value)) / jnp.arange(1, LENGTH + 1)[:, None]

    key = jax.random.key(3)
    assert repetition_loss(trained, key, [("blocks.0.hook_attn_out", ablate)]) > 0.9 * CHANCE
    assert repetition_loss(trained, key, [("blocks.0.attn.hook_pattern", spread)]) > 0.5 * CHANCE
    assert repetition_loss(trained, key, [("blocks.1.hook_attn_out", ablate)]) > 0.9 * CHANCE


@pytest.mark.parametrize("periods", [(9, 13), (21, 26)])
def test_induction_is_no_matter_of_distance(trained, periods):
    """Periods that it was not trained on."""
    assert repetition_loss(trained, jax.random.key(4), periods=periods) < 0.5 * CHANCE

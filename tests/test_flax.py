"""A model and its parts are modules of Flax: state, split and merge, optimizers, transformations, Orbax, display."""

import copy
import io
import pickle
import re
from contextlib import redirect_stdout
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from support.models import CONFIGS, model, randomised, tokens
from test_models import close, every_config
from test_static_part import CFG, words

from jaxlens import HookedTransformer
from jaxlens.nn.module import arrays
from jaxlens.nn.parameters import parameter_shapes


def values(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@nnx.jit
def train_step(the_model, optimizer, batch):
    def loss_fn(the_model):
        return the_model(batch, return_type="loss")

    loss, grads = nnx.value_and_grad(loss_fn)(the_model)
    optimizer.update(the_model, grads)
    return loss


# --- state


@every_config
def test_every_weight_is_a_param(name):
    the_model = model(name)
    state = nnx.state(the_model, nnx.Param)
    assert len(jax.tree.leaves(state)) == len(parameter_shapes(the_model.cfg))
    assert sum(w.size for w in jax.tree.leaves(state)) == the_model.n_params_total
    graphdef, params, rest = nnx.split(the_model, nnx.Param, ...)
    assert not jax.tree.leaves(rest)
    given = tokens(1, 5)
    assert (nnx.merge(graphdef, params, rest)(given) == the_model(given)).all()


def test_the_path_of_a_weight_is_its_path_in_the_modules():
    the_model = model("llama")
    state = nnx.state(the_model, nnx.Param)
    assert (state["modules"]["stacks"][0]["attn"]["W_Q"].get_value() == the_model.params["blocks.*.attn.W_Q"]).all()
    paths = {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(the_model)}
    assert "modules.stacks.0.attn.W_Q.value" in paths


def test_the_parts_are_modules_of_flax():
    the_model = model("moe")
    parts = [part for _, part in nnx.iter_modules(the_model)]
    assert {type(part).__name__ for part in parts} >= {"HookedTransformer", "Modules", "Block", "Attention", "MoE"}
    block = the_model.modules.stacks[0]
    assert isinstance(block.attn.W_Q, nnx.Param)
    assert not jax.tree.leaves(nnx.state(arrays(block), nnx.Param))
    assert isinstance(arrays(block).attn.W_Q, jax.Array)


def test_an_update_of_the_state_is_seen_by_the_next_call():
    the_model, given = randomised(CONFIGS["llama"]), tokens(1, 5)
    expected = the_model.with_params({name: w / 2 for name, w in the_model.params.items()})(given)
    nnx.update(the_model, jax.tree.map(lambda w: w / 2, nnx.state(the_model, nnx.Param)))
    close(the_model(given), expected)
    the_model.modules.embed.W_E[...] = jnp.zeros_like(the_model.W_E)
    assert not the_model.W_E.any()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, nnx.clone, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(copied):
    the_model, given = randomised(CONFIGS["gpt2"]), tokens(1, 5)
    the_copy = copied(the_model)
    assert jax.tree.structure(the_copy) == jax.tree.structure(randomised(CONFIGS["gpt2"], 1))
    assert (the_copy(given) == the_model(given)).all()
    the_copy.set_params({name: w * 0 for name, w in the_model.params.items()})
    assert the_model(given).any()


# --- training


def test_an_optimizer_of_flax_does_what_optax_does_on_params():
    the_model, batch = randomised(CONFIGS["llama"]), tokens(4, 6)
    params, transform = the_model.params, optax.sgd(0.01, momentum=0.9)
    state, losses = transform.init(params), []
    for _ in range(3):
        loss, gradient = jax.value_and_grad(lambda p: the_model.with_params(p)(batch, return_type="loss"))(params)
        update, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        losses.append(loss)
    optimizer = nnx.Optimizer(the_model, optax.sgd(0.01, momentum=0.9), wrt=nnx.Param)
    close(jnp.stack([train_step(the_model, optimizer, batch) for _ in range(3)]), jnp.stack(losses))
    for name, trained in the_model.params.items():
        close(trained, params[name])


def test_a_training_step_is_traced_once_for_equal_models():
    traces = []

    @nnx.jit
    def forward(the_model, batch):
        traces.append(1)
        return the_model(batch)

    models = [HookedTransformer(CFG, words(), seed=seed) for seed in range(2)]
    tokenizers = [the_model.tokenizer for the_model in models]
    for the_model in models:
        close(forward(the_model, tokens(1, 4) % CFG.d_vocab), the_model(tokens(1, 4) % CFG.d_vocab))
    assert len(traces) == 1
    assert all(the_model.tokenizer is own for the_model, own in zip(models, tokenizers, strict=True))
    models[0].tokenizer.padding_side = "left"
    forward(models[0], tokens(1, 4) % CFG.d_vocab)
    assert len(traces) == 2


def test_hooks_on_the_model_act_in_a_training_step():
    the_model, batch = randomised(CONFIGS["gpt2"]), tokens(2, 6)
    the_model.add_hook("blocks.0.hook_mlp_out", lambda value, hook: value * 0)
    expected = the_model(batch, return_type="loss")
    optimizer = nnx.Optimizer(the_model, optax.sgd(0.1), wrt=nnx.Param)
    before = the_model.params["blocks.*.mlp.W_out"]
    close(train_step(the_model, optimizer, batch), expected)
    after = the_model.params["blocks.*.mlp.W_out"]
    assert (after[0] == before[0]).all() and (after[1] != before[1]).any()


def test_gradients_are_those_of_jax():
    the_model, batch = randomised(CONFIGS["llama"]), tokens(2, 6)  # not one kept from a trace

    def loss(the_model):
        return the_model(batch, return_type="loss")

    by_flax = nnx.grad(loss)(the_model)["modules"]
    by_jax = jax.grad(loss)(the_model)
    for ours, theirs in zip(values(nnx.state(by_jax.modules)), values(by_flax), strict=True):
        close(ours, theirs)


def test_a_trace_may_add_hooks_to_a_model_but_not_change_its_weights():
    the_model = model("gpt2")

    @jax.jit
    def changed(given):
        with the_model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: value * given[0, 0])]):
            return the_model(given)

    assert changed(tokens(1, 5)).shape == (1, 5, the_model.cfg.d_vocab)
    with pytest.raises(Exception, match="trace level"):
        jax.jit(lambda x: the_model.modules.embed.W_E.set_value(x))(the_model.W_E)


# --- Orbax and display


def test_orbax_saves_and_restores(tmp_path):
    the_model, given = randomised(CONFIGS["llama"]), tokens(1, 5)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", nnx.state(the_model, nnx.Param))
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: HookedTransformer(the_model.cfg)))
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
    sharded = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=placed), abstract)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = nnx.merge(graphdef, checkpointer.restore(tmp_path / "checkpoint", sharded))
    assert restored.W_E.sharding == placed
    close(restored(given), the_model(given))


def test_display_shows_the_weights():
    with redirect_stdout(io.StringIO()) as shown:
        nnx.display(model("gpt2"))
    assert "HookedTransformer" in shown.getvalue() and "W_pos" in shown.getvalue()


def test_the_page_about_flax_runs(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "flax.md").read_text()
    world = {"folder": tmp_path}
    with redirect_stdout(io.StringIO()) as printed:
        for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(code, world)
    first, last = map(float, printed.getvalue().split("\n")[0].split(" -> "))
    assert last < first / 4
    assert "(2, 2, 16, 8)" in printed.getvalue()
    given = np.arange(5)[None]
    close(world["restored"](given), world["model"](given))

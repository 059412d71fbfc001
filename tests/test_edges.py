"""Edge attribution: edges into a receiver, and out of a component, add up to what attribution patching says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import ADDITIVE, CONFIGS, LINEAR_HEADS, LLAMA, model, randomised
from test_attribution import CLEAN, CORRUPT, score
from test_engine import compilations  # noqa: F401  (a fixture)
from test_models import close

from jaxlens import Config, hook
from jaxlens.analysis.attribution import edges as edges_module
from jaxlens.analysis.attribution.edges import Graph, edge_attribution_patch, scores
from jaxlens.analysis.attribution.nodes import attribution_patch
from jaxlens.analysis.compiled import compiled

PARALLEL_GROUPED = Config(**{**LLAMA, "parallel_attn_mlp": True, "shared_norm": True, "n_layers": 2})
POST_NORM_BIASES = Config(
    n_layers=2, d_model=14, n_heads=6, d_head=4, d_mlp=22, d_vocab=37, n_ctx=32, act_fn="gelu", norm_placement="both"
)
MORE = {"grouped, parallel, shared norm": PARALLEL_GROUPED, "LayerNorms before and after, biases": POST_NORM_BIASES}


def total(logits):
    return score(logits).sum()


def sums(found, axis):
    """The scores summed over one side, by the names of the other."""
    names = found.labels["receiver" if axis == 0 else "upstream"]
    return dict(zip(names, found.values.sum(axis), strict=True))


@pytest.mark.parametrize("name", [*(name for name in ADDITIVE if name in LINEAR_HEADS), *MORE])
def test_edges_add_up_to_what_attribution_says_of_their_ends(name):
    """Into a receiver, to that of the residual stream as it reads it; out of a component, to that of what it writes."""
    the_model = randomised(MORE[name]) if name in MORE else model(name)
    cfg = the_model.cfg
    found = edge_attribution_patch(the_model, CLEAN, CORRUPT, total)
    has_mlp = [] if cfg.attn_only else ["mlp_in", "mlp_out"]
    names = ["q_input", "k_input", "v_input", "z", "attn_out", "resid_post", "embed", *has_mlp]
    nodes = attribution_patch(the_model, CLEAN, CORRUPT, total, names)
    at = {node: nodes[node].sum("pos").values for node in nodes if node != "embed"}
    into, out_of, scale = sums(found, 0), sums(found, 1), np.abs(found.values).max()
    kv = "h" if cfg.n_heads == cfg.n_key_value_heads else "kv"
    pairs = [(out_of["embed"], nodes["embed"].sum("pos").values), (into["logits"], at["resid_post"][-1])]
    for layer in range(cfg.n_layers):
        for of, head in (("q", "h"), ("k", kv), ("v", kv)):
            by_head = at[f"{of}_input"][layer]
            pairs += [(into[f"a{layer}.{head}{i}<{of}>"], expected) for i, expected in enumerate(by_head)]
        if has_mlp:
            pairs += [(into[f"m{layer}"], at["mlp_in"][layer]), (out_of[f"m{layer}"], at["mlp_out"][layer])]
        heads = [out_of[f"a{layer}.h{head}"] for head in range(cfg.n_heads)]
        pairs.append((sum(heads), at["attn_out"][layer]))
        if cfg.norm_placement == "pre":
            pairs += zip(heads, at["z"][layer], strict=True)
    for ours, expected in pairs:
        assert abs(ours - expected) <= 1e-5 * scale
    close(found.corrupted_metric, total(the_model(CORRUPT)))
    close(found.clean_metric, total(the_model(CLEAN)))


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_between_equal_inputs_every_edge_is_exactly_zero(name):
    found = edge_attribution_patch(model(name), CLEAN, CLEAN, score)
    assert not found.values.any()
    assert np.array_equal(found.clean_metric, found.corrupted_metric)


def test_an_edge_is_the_derivative_of_patching_one_component_in_one_input():
    """By its definition: what a head writes is moved towards the clean run in the input of one key head alone."""
    the_model = model("llama")
    result, read = "blocks.0.attn.hook_result", "blocks.2.hook_k_input"
    clean, corrupted = (the_model.run_with_cache(of, names_filter=result)[1][result] for of in (CLEAN, CORRUPT))

    def move(value, hook, by):
        return value.at[:, :, 1].add(by)

    @jax.jit
    @jax.grad
    def slope(step, the_model):
        edit = hook(move, by=step * (clean - corrupted)[:, :, 4])
        return total(the_model.run_with_hooks(CORRUPT, fwd_hooks=[(read, edit)]))

    found = edge_attribution_patch(the_model, CLEAN, CORRUPT, total)
    close(found.at(upstream="a0.h4", receiver="a2.kv1<k>").values, slope(0.0, the_model))


def test_there_is_an_edge_where_the_upstream_component_comes_first():
    graph = Graph.of(Config(**{**LLAMA, "n_layers": 2}))
    edge = lambda u, w: graph.exists[graph.upstream.index(u), graph.receivers.index(w)]  # noqa: E731
    assert graph.exists.shape == (1 + 2 * 7, 2 * (6 + 2 + 2 + 1) + 1)
    assert graph.exists[0].all() and graph.exists[:, -1].all()
    assert edge("a0.h3", "m0") and edge("m0", "a1.kv1<v>") and edge("a0.h3", "a1.h5<q>") and edge("a1.h0", "m1")
    assert not (edge("a0.h3", "a0.h4<q>") or edge("m0", "m0") or edge("m1", "a1.h0<q>") or edge("a1.h0", "m0"))
    parallel = Graph.of(CONFIGS["parallel"])
    assert not parallel.exists[parallel.upstream.index("a2.h0"), parallel.receivers.index("m2")]
    found = edge_attribution_patch(model("parallel"), CLEAN, CORRUPT, total)
    assert found.exists.shape == found.shape and not found.values[~found.exists].any()
    strongest = found.top_edges(3)
    assert [abs(value) for *_, value in strongest] == sorted(np.abs(found.values).ravel())[:-4:-1]
    assert found.at(upstream=strongest[0][0], receiver=strongest[0][1]).values == strongest[0][2]


def test_prompts_chunks_and_steps(monkeypatch):
    """Scores per prompt, from a few rows at a time, are those of all at once; steps are the mean over the way."""
    the_model = model("gpt2")
    together = edge_attribution_patch(the_model, CLEAN, CORRUPT, total)
    each = edge_attribution_patch(the_model, CLEAN, CORRUPT, score)
    assert each.axes == ("upstream", "receiver", "prompt")
    close(each.values.sum(-1), together)
    alone = edge_attribution_patch(the_model, CLEAN[1:], CORRUPT[1:], score)
    close(alone.values[..., 0], each.values[..., 1])
    row = sum(together.shape) * the_model.cfg.d_model * 4
    for rows, metric, expected in ((4, total, together), (3, score, each)):
        monkeypatch.setattr(edges_module, "CHUNK_BYTES", row * rows)
        monkeypatch.setattr(edges_module, "scores", compiled_anew(scores))
        close(edge_attribution_patch(the_model, CLEAN, CORRUPT, metric), expected)
    assert abs(each.top_edges(2)[0][2]) == pytest.approx(np.abs(each.values.mean(-1)).max(), rel=1e-6)


def compiled_anew(function):
    """A program that is none of those compiled before."""

    def run(model, *arguments, per_prompt):
        return function.__wrapped__(model, *arguments, per_prompt=per_prompt)

    return compiled(run)


def test_steps_average_gradients_on_the_way_and_compile_nothing(compilations):  # noqa: F811
    the_model = model("llama")
    nodes = attribution_patch(the_model, CLEAN, CORRUPT, total, ["q_input", "mlp_in", "resid_post"], ig_steps=3)
    edge_attribution_patch(the_model, CLEAN, CORRUPT, total, ig_steps=2)
    compilations.clear()
    found = edge_attribution_patch(the_model, CLEAN, CORRUPT, lambda logits: total(logits), ig_steps=3)
    assert compilations == []
    into, scale = sums(found, 0), np.abs(found.values).max()
    at = {node: nodes[node].sum("pos").values for node in nodes}
    for ours, expected in (
        (into["a2.h5<q>"], at["q_input"][2, 5]), (into["m1"], at["mlp_in"][1]), (into["logits"], at["resid_post"][-1])
    ):  # fmt: skip
        assert abs(ours - expected) <= 1e-5 * scale


def test_an_edit_of_what_the_mlp_reads_acts_where_its_norm_is_shared_too():
    the_model = model("shared_norm")
    params = the_model.params
    edit = [("blocks.2.hook_mlp_in", lambda x, hook: x + 1.5 * jnp.arange(14))]
    moved = the_model.run_with_hooks(CLEAN, fwd_hooks=edit)
    assert not np.allclose(moved, the_model(CLEAN), atol=1e-3)
    norms = {f"blocks.*.ln2.{name}": params[f"blocks.*.ln1.{name}"] for name in "wb"}
    twin = type(the_model)(the_model.cfg.replace(shared_norm=False), params=params | norms)
    close(moved, twin.run_with_hooks(CLEAN, fwd_hooks=edit))
    halved = [("blocks.2.ln1.hook_normalized", lambda x, hook: x / 2)]
    keep = [("blocks.2.hook_mlp_in", lambda x, hook: x)]
    close(the_model.run_with_hooks(CLEAN, fwd_hooks=halved + keep), the_model.run_with_hooks(CLEAN, fwd_hooks=halved))

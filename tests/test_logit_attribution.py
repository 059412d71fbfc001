"""Direct logit attribution: rows that add up to the logits, of every unit, in every architecture."""

import dataclasses
import functools
import importlib
import pkgutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.mistakes import Case, unreached
from support.models import CONFIGS, model, tokens, with_neurons
from support.programs import compilations
from test_decomposition import EVERY, MASK, cache_of, made, ran
from test_models import close
from test_text import word_tokenizer

import jaxlens
from jaxlens import ActivationCache, ActivationNotFound, HookedTransformer, Tokenizer, direct_logit_attribution, weights
from jaxlens.analysis import logit_attribution
from jaxlens.analysis.labelled_array import Labelled

# The caches are of padded rows, and the padding is compared too.
pytestmark = pytest.mark.filterwarnings("ignore:pos_slice=.* counts from the end")

UNITS = ("component", "head", "neuron", "all", "layer")
every_config = pytest.mark.parametrize("name", EVERY)


def units(name: str):
    return [unit for unit in UNITS if unit != "neuron" or not EVERY[name].attn_only]


def processed(name: str) -> ActivationCache:
    """The run of `ran`, on weights that were folded and centred where that is valid."""
    params, cfg, _ = weights.process_weights(made(name).params, made(name).cfg)
    folded = HookedTransformer(cfg, params=params)
    return folded.run_with_cache(tokens(), names_filter=with_neurons(cfg), attention_mask=MASK)[1]


def before_the_cap(cache) -> jax.Array:
    """The logits of a run, before any soft cap."""
    return cache["unembed.hook_in"] @ cache.model.W_U + cache.model.b_U


@functools.cache
def speaking():
    """A model that has a tokenizer."""
    twin = model("gpt2").with_params(model("gpt2").params)
    twin.set_tokenizer(Tokenizer(word_tokenizer(), bos_token="<s>", pad_token="<pad>"))
    return twin


@every_config
@pytest.mark.parametrize("seed", [0, 1])
def test_rows_add_up_to_the_logits_of_raw_weights(name, seed):
    cache = ran(name, seed)
    logits = before_the_cap(cache)
    for unit in units(name):
        result = direct_logit_attribution(cache.model, answer_tokens=5, unit=unit, pos=None, cache=cache)
        close(result.total, logits[..., 5], 1e-5)
        assert (result.labels[-1], result.axes) == ("constant", ("batch", "pos"))
        assert result.values.shape == (len(result.labels), 2, 11)


@every_config
def test_rows_add_up_to_the_logit_difference_of_processed_weights(name):
    cache = processed(name)
    logits = before_the_cap(cache)
    result = direct_logit_attribution(cache.model, None, [3, 30], [7, 7], unit="all", cache=cache)
    close(result.total, logits[jnp.arange(2), -1, jnp.array([3, 30])] - logits[:, -1, 7], 1e-5)
    assert result.axes == ("batch",)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("gpt2", "component"), ("gpt2", "layer"), ("gemma", "head"), ("moe", "neuron"), ("norms after, centred", "all"),
        ("original", "component"), ("original", "head"), ("original", "neuron"),
    ],
)  # fmt: skip
def test_without_a_cache_the_model_runs_and_keeps_what_the_unit_needs(name, unit):
    result = direct_logit_attribution(made(name), tokens(), [3, 30], [7, 7], unit=unit, attention_mask=MASK)
    for row, tokens_of_row in enumerate(np.asarray(MASK)):  # without a cache, the position is that of the last token
        last = int(np.flatnonzero(tokens_of_row)[-1])
        cached = direct_logit_attribution(made(name), None, [3, 30], [7, 7], unit, cache=ran(name), pos=last)
        close(result.values[..., row], cached.values[..., row])


def test_rows_are_the_attributions_of_what_they_name():
    cache = ran("gemma")
    stacks = {
        "component": cache.decompose_resid(pos_slice=-1, return_labels=True),
        "head": cache.stack_head_results(pos_slice=-1, return_labels=True, incl_remainder=True),
        "neuron": cache.stack_neuron_results(-1, pos_slice=-1, return_labels=True, incl_remainder=True),
        "all": cache.get_full_resid_decomposition(pos_slice=-1, return_labels=True),
        "layer": cache.accumulated_resid(pos_slice=-1, incl_mid=True, return_labels=True),
    }
    for unit, (stack, labels) in stacks.items():
        result = direct_logit_attribution(made("gemma"), None, [3, 30], [7, 9], unit=unit, cache=cache)
        assert list(result.labels) == [*labels, "constant"]
        close(result.values[:-1], cache.logit_attrs(stack, jnp.array([3, 30]), jnp.array([7, 9]), pos_slice=-1), 1e-5)
        assert result.attribution is result.values
        assert result.unit == unit


def test_heads_by_layer_and_head():
    result = direct_logit_attribution(model("moe"), tokens(), 4, 9, unit="head")
    assert result.heads().shape == (4, 6, 2)
    assert jnp.array_equal(result.heads()[2, 3], result.values[result.labels.index("L2H3")])
    everything = direct_logit_attribution(model("moe"), tokens(), 4, 9, unit="all")
    close(everything.heads(), result.heads())


def test_one_prompt_and_one_position_leave_no_axes():
    cache = ran("gpt2").apply_slice_to_batch_dim(1)
    result = direct_logit_attribution(made("gpt2"), answer_tokens=5, cache=cache, pos=4)
    close(result.total, before_the_cap(ran("gpt2"))[1, 4, 5])
    assert result.axes == ()
    assert repr(result).startswith("DirectLogitAttribution(by component: ")
    every = direct_logit_attribution(made("gpt2"), None, jnp.arange(11), cache=cache, pos=None)
    close(every.total, before_the_cap(ran("gpt2"))[1, jnp.arange(11), jnp.arange(11)])
    assert every.axes == ("pos",)


def test_prompts_of_several_lengths_are_read_at_the_last_token_of_each():
    the_model = speaking()
    words = [the_model.to_single_str_token(token) for token in (5, 9, 11, 12)]
    prompts = [" ".join(words), " ".join(words[:2])]
    answers, wrong = [words[2], words[3]], [words[0], words[0]]
    together = direct_logit_attribution(the_model, prompts, answers, wrong)
    for row, prompt in enumerate(prompts):
        alone = direct_logit_attribution(the_model, prompt, answers[row], wrong[row])
        close(together.values[:, row], alone.values[:, 0])
        logits = the_model(prompt)[0, -1]
        right, other = the_model.to_single_token(answers[row]), the_model.to_single_token(words[0])
        close(alone.total[0], logits[right] - logits[other], 1e-5)


def test_it_works_under_jit_and_grad_and_does_not_compile_for_new_answers():
    def total(the_model, given, answers):
        return direct_logit_attribution(the_model, given, answers, unit="all")

    jitted = jax.jit(total)(model("post_norm"), tokens(), jnp.array([3, 4]))
    plain = total(model("post_norm"), tokens(), jnp.array([3, 4]))
    close(jitted.values, plain.values)
    assert jitted.labels == plain.labels
    with compilations() as again:
        total(model("post_norm"), tokens(seed=3), jnp.array([8, 1]))
    assert again == []

    def remainder(params):
        twin = model("gpt2").with_params(params)
        return direct_logit_attribution(twin, tokens(), 3, unit="head").values[-2].sum()

    gradient = jax.grad(remainder)(model("gpt2").params)
    assert float(jnp.abs(gradient["blocks.*.mlp.W_out"]).max()) > 0


def test_the_strongest_are_shown():
    result = direct_logit_attribution(model("gpt2"), tokens(), 3, 9, unit="neuron")
    means = np.asarray(result.values).mean(1)
    best = result.top(3)
    assert [value for _, value in best] == sorted(means.tolist(), reverse=True)[:3]
    assert best[0][0] == result.labels[int(means.argmax())]
    lines = repr(result).split("\n")
    assert lines[0] == f"DirectLogitAttribution(by neuron: {means.sum():+.3f} logits, mean over batch (2,))"
    assert lines[1].endswith(result.labels[int(np.abs(means).argmax())])
    assert lines[-1] == f"  and {len(means) - 10} more"


def test_a_table_has_a_row_for_every_value(monkeypatch):
    made_of = types.SimpleNamespace(DataFrame=lambda columns: columns)  # stands for pandas, which may be missing
    monkeypatch.setitem(sys.modules, "pandas", made_of)
    result = direct_logit_attribution(model("gpt2"), tokens(), 3, pos=[2, 5, 9])
    table = result.to_dataframe()
    assert list(table) == ["component", "batch", "pos", "value"]
    row = list(zip(table["component"], table["batch"], table["pos"], strict=True)).index(("2_mlp_out", 1, 2))
    assert table["value"][row] == result.values[result.labels.index("2_mlp_out"), 1, 2]
    assert len(table["value"]) == result.values.size


def has_arrays(of) -> bool:
    """Whether a dataclass has a field that holds arrays or a model, itself or in another dataclass."""
    fields = [str(field.type) for field in dataclasses.fields(of)]
    return any(word in kind for kind in fields for word in ("Array", "ndarray", "ByStretch", "Labelled", "Model"))


def test_results_with_arrays_are_compared_by_identity():
    """Comparing arrays by value gives an array, so `==` on a dataclass of arrays would raise an error."""
    names = [info.name for info in pkgutil.walk_packages(jaxlens.analysis.__path__, "jaxlens.analysis.")]
    modules = [importlib.import_module(name) for name in (*names, "jaxlens.model.cache.logit_lens")]
    found = {of for module in modules for of in vars(module).values() if dataclasses.is_dataclass(of)}
    ours = {of for of in found if of.__module__ in {module.__name__ for module in modules} and has_arrays(of)}
    assert {"Labelled", "Patched", "EdgeScores", "DirectLogitAttribution", "LogitLensResult"} <= {
        of.__name__ for of in ours
    }
    assert [of for of in ours if of.__eq__ is not object.__eq__ or of.__hash__ is not object.__hash__] == []


def test_a_result_equals_itself_only_and_can_be_a_key():
    first, second = (direct_logit_attribution(model("gpt2"), tokens(), 3) for _ in range(2))
    assert first == first and first != second and {first: 1}[first] == 1
    first, second = (Labelled(np.ones(2), ("head",), {"head": ["0", "1"]}) for _ in range(2))
    assert first == first and first != second and len({first, second}) == 2
    assert np.array_equal(first, second)


ERRORS = {
    "an unknown unit": Case(
        lambda: direct_logit_attribution(model("gpt2"), tokens(), 3, unit="heads"), ValueError,
        "unit is 'heads'",
    ),
    "no answer": Case(
        lambda: direct_logit_attribution(model("gpt2"), tokens()), ValueError, "answer_tokens is missing"
    ),
    "no input": Case(
        lambda: direct_logit_attribution(model("gpt2"), answer_tokens=3), ValueError, "give an input to run the model"
    ),
    "how to run without a run": Case(
        lambda: direct_logit_attribution(model("gpt2"), None, 3, cache=ran("gpt2"), attention_mask=MASK), ValueError,
        "attention_mask cannot be given with a cache, because the model is not run",
    ),
    "heads of components": Case(
        lambda: direct_logit_attribution(model("gpt2"), tokens(), 3).heads(), ValueError,
        'heads() needs an attribution with unit="head" or unit="all"',
    ),
    "a cache without what is needed": Case(
        lambda: direct_logit_attribution(model("gpt2"), None, 3, unit="head", cache=cache_of("ln_final.hook_scale")),
        ActivationNotFound, 'this needs "blocks.*.attn.hook_z"',
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, ERRORS.values()) == []


def test_the_names_are_public():
    assert jaxlens.DirectLogitAttribution is logit_attribution.DirectLogitAttribution
    assert set(CONFIGS) < set(EVERY)

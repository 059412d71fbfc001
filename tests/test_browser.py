"""Pages of `jaxlens.plot` in a notebook that a browser shows: drawn completely, without errors, and they react.

The notebook is a page with each picture in a column, as Jupyter and nbconvert show it. The tests need Chromium.
"""

import pytest
from support.browser import CHROMIUM, Browser
from test_plot import PICTURES, picture

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium (apt-get install chromium)")
THEMES = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}
"""The background of a page in each theme."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def show(browser, folder, name, width=900, **options):
    """The session of a picture's frame, in a notebook of this width."""
    path = folder / "notebook.html"
    path.write_text(f"<!doctype html><body style='margin:40px'>{picture(name)._repr_html_()}", encoding="utf-8")
    browser.open(path, width=width, height=2000, **options)
    browser.until(lambda: len(browser.frames()) == 1, "the picture has a frame")
    (frame,) = browser.frames()
    browser.until(lambda: browser.run("document.querySelectorAll('.drawing > *').length", frame), "it is drawn")
    return frame


def middle(browser, frame, selector):
    """The middle of an element of the frame, in the coordinates of the notebook."""
    box = f"document.querySelector({selector!r}).getBoundingClientRect()"
    x, y = browser.run(f"[{box}.left + {box}.width / 2, {box}.top + {box}.height / 2]", frame)
    left, top = browser.run("(box => [box.left, box.top])(document.querySelector('iframe').getBoundingClientRect())")
    return left + x, top + y


@pytest.mark.parametrize("width", [900, 420])
@pytest.mark.parametrize("name", PICTURES)
def test_a_page_is_drawn_without_errors_and_is_not_wider_than_the_notebook(name, width, browser, tmp_path):
    frame = show(browser, tmp_path, name, width)
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth", frame)
    empty = "[...document.querySelectorAll('.drawing')].filter(each => each.clientHeight < 20).length"
    assert browser.run(empty, frame) == 0


@pytest.mark.parametrize("theme", THEMES)
def test_a_page_has_the_theme_of_the_reader(theme, browser, tmp_path):
    frame = show(browser, tmp_path, "heatmap", dark=theme == "dark")
    assert browser.run("getComputedStyle(document.body).backgroundColor", frame) == THEMES[theme]


def tooltip(browser, frame):
    return browser.run("(each => each.hidden ? '' : each.innerText)(document.querySelector('.tooltip'))", frame)


@pytest.mark.parametrize(
    ("name", "selector", "expected"),
    [
        ("heatmap", ".matrix canvas", "layer 2, pos c"),
        ("lens", ".matrix canvas", "%"),
        ("lines", "svg", "layer 4"),
        ("tokens", ".token", "a:"),
    ],
)
def test_the_mouse_shows_a_value(name, selector, expected, browser, tmp_path):
    frame = show(browser, tmp_path, name)
    assert tooltip(browser, frame) == ""

    def shown() -> bool:
        x, y = middle(browser, frame, selector)
        browser.mouse(x, y)  # again and again: a page that is still loading does not notice a single movement
        browser.mouse(x + 1, y + 1)
        return expected in tooltip(browser, frame)

    browser.until(shown, f"the tooltip contains {expected!r}")
    browser.mouse(*middle(browser, frame, "figcaption"))
    browser.until(lambda: tooltip(browser, frame) == "", "the tooltip is gone")
    assert browser.problems == []


def test_a_click_selects_a_head_and_a_direction(browser, tmp_path):
    frame = show(browser, tmp_path, "attention")

    def summary():
        return browser.run("document.querySelector('.summary').innerText", frame)

    before = summary()
    assert before.startswith("Head 0: t5 (5) attends to")
    browser.mouse(*middle(browser, frame, ".heads button:nth-child(2)"), click=True)
    browser.until(lambda: summary().startswith("Head 1: t5 (5) attends to"), "head 1 is selected")
    browser.mouse(*middle(browser, frame, ".toggle button:nth-child(2)"), click=True)
    browser.until(lambda: summary().startswith("Head 1: t5 (5) is attended to by"), "the direction is switched")
    browser.mouse(*middle(browser, frame, "figcaption"))
    browser.until(lambda: summary().startswith("Head 1:"), "the selection stays when the mouse leaves")
    assert browser.problems == []

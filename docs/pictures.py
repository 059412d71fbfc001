"""Makes the images of pictures.md: `python docs/pictures.py`. Needs SmolLM2, Pillow and Chromium."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
from PIL import Image, ImageChops

from jaxlens import HookedTransformer, direct_logit_attribution, patching, plot

FOLDER = Path(__file__).with_suffix("")
CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"


def pictures() -> dict[str, plot.Picture]:
    """The pictures of pictures.md by name."""
    model = HookedTransformer.from_pretrained_no_processing("smollm2-135m-instruct")
    logits, cache = model.run_with_cache(CLEAN)
    names = model.to_str_tokens(CLEAN)
    mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")
    corrupted = model.to_tokens(CORRUPTED)

    def difference(logits):
        return (logits[:, -1, mary] - logits[:, -1, john]).mean()

    clean, baseline = difference(logits), difference(model(corrupted))
    patched = patching.get_act_patch_resid_pre(
        model, corrupted, cache, lambda logits: (difference(logits) - baseline) / (clean - baseline)
    )
    attribution = direct_logit_attribution(model, CLEAN, mary, john, unit="head").heads()[..., 0]
    log_probs = jax.nn.log_softmax(logits)
    return {
        "attention": plot.attention_patterns(cache, CLEAN, layer=23),
        "patching": plot.heatmap(
            patched, xlabels=names, xname="position", yname="layer", unit="share recovered",
            title="The clean residual stream patched into the corrupted run",
        ),
        "lens": plot.logit_lens(cache, CLEAN),
        "bars": plot.bars(attribution, count=12, unit="logits", title="What each head adds to Mary − John"),
        "tokens": plot.token_log_probs(model.to_tokens(CLEAN), log_probs, model.to_single_str_token),
    }  # fmt: skip


def save_screenshot(picture: plot.Picture, path: Path, width: int = 900, height: int = 1000) -> None:
    """Saves a screenshot of a page, without the margins and with 256 colours."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("a screenshot needs Chromium, but no chromium or google-chrome is on PATH; install Chromium")
    with tempfile.TemporaryDirectory() as folder:
        page, screenshot = picture.save(Path(folder) / "page.html"), Path(folder) / "page.png"
        size = ["--hide-scrollbars", f"--window-size={width},{height}", f"--screenshot={screenshot}"]
        subprocess.run([browser, "--headless", "--no-sandbox", *size, page.as_uri()], check=True, capture_output=True)
        image = Image.open(screenshot).convert("RGB")
    _, _, right, bottom = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    image.crop((0, 0, right + 12, bottom + 12)).quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        save_screenshot(picture, FOLDER / f"{name}.png", width=1240 if name == "lens" else 900)
        print(picture.title, (FOLDER / f"{name}.png").stat().st_size)

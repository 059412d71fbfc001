"""The colors of all pictures: blue above zero, orange below, which people with any color vision can distinguish.

POSITIVE and NEGATIVE start at zero. They equal `--positive` and `--negative` of the light theme in page/style.css.
"""

import numpy as np

POSITIVE = ("#f3f5f7", "#c3dcf2", "#6baadb", "#1c6fb5", "#083a70")
NEGATIVE = ("#f3f5f7", "#fcd9b8", "#f59b4c", "#c75c0a", "#743000")
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b4568c", "#a87400", "#2c96cf", "#555555")
"""The colors of lines: the palette of Okabe and Ito, with its palest colors darkened for thin lines."""

SHADES = " ░▒▓█"


def rgb(fraction: float) -> tuple[int, int, int]:
    """The color of a number between -1 and 1."""
    stops = [tuple(bytes.fromhex(stop[1:])) for stop in (POSITIVE if fraction >= 0 else NEGATIVE)]
    position = min(abs(fraction), 1.0) * (len(stops) - 1)
    lower = min(int(position), len(stops) - 2)
    pairs = zip(stops[lower], stops[lower + 1], strict=True)
    red, green, blue = (round(low + (high - low) * (position - lower)) for low, high in pairs)
    return red, green, blue


def is_dark(fraction: float) -> bool:
    """Whether white text has more contrast with the color than black text (WCAG's relative luminance, gamma 2.2)."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in rgb(fraction))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179


def with_colour(text: str, value: float) -> str:
    """Terminal text in orange for a negative value and in blue otherwise."""
    return f"\x1b[38;5;{166 if value < 0 else 32}m{text}\x1b[0m"


def with_background(text: str, fraction: float) -> str:
    """Text on a colored background, for a terminal with 256 colors."""
    if not np.isfinite(fraction):
        return text
    red, green, blue = (round(channel / 51) for channel in rgb(fraction))
    return f"\x1b[48;5;{16 + 36 * red + 6 * green + blue};38;5;{231 if is_dark(fraction) else 16}m{text}\x1b[0m"


def shade(fraction: float, with_sign: bool) -> str:
    """Two characters that are darker for a larger magnitude. If `with_sign`, the first is the sign."""
    if not np.isfinite(fraction):
        return "  "
    character = SHADES[min(len(SHADES) - 1, round(abs(fraction) * (len(SHADES) - 1)))]
    if not with_sign:
        return 2 * character
    return "  " if character == " " else ("+" if fraction > 0 else "-") + character


def colormap(signed: bool):
    """The matplotlib colormap from -1 (0 if not `signed`) to 1. Values that are not finite are transparent."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = [*reversed(NEGATIVE), *POSITIVE[1:]] if signed else POSITIVE
    return LinearSegmentedColormap.from_list("jaxlens", stops).with_extremes(bad=(0, 0, 0, 0))

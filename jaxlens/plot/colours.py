"""The colours of all pictures: blue above zero, orange below, which every kind of colour vision tells apart.

The stops are those of `--positive` and `--negative` in page/style.css, from zero outwards, for a light page.
"""

import numpy as np

POSITIVE = ("#f3f5f7", "#c3dcf2", "#6baadb", "#1c6fb5", "#083a70")
NEGATIVE = ("#f3f5f7", "#fcd9b8", "#f59b4c", "#c75c0a", "#743000")
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b4568c", "#a87400", "#2c96cf", "#555555")
"""Lines: the palette of Okabe and Ito, darkened where it is too pale for a thin line."""

SHADES = " ░▒▓█"


def rgb(fraction: float) -> tuple[int, int, int]:
    """The colour of a number between -1 and 1."""
    stops = [tuple(bytes.fromhex(stop[1:])) for stop in (POSITIVE if fraction >= 0 else NEGATIVE)]
    place = min(abs(fraction), 1.0) * (len(stops) - 1)
    lower = min(int(place), len(stops) - 2)
    pairs = zip(stops[lower], stops[lower + 1], strict=True)
    red, green, blue = (round(low + (high - low) * (place - lower)) for low, high in pairs)
    return red, green, blue


def is_dark(fraction: float) -> bool:
    """Whether white text has more contrast on this colour than black (WCAG's relative luminance, gamma 2.2)."""
    red, green, blue = ((part / 255) ** 2.2 for part in rgb(fraction))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179


def in_colour(text: str, value: float) -> str:
    """Text in the colour of its sign."""
    return f"\x1b[38;5;{166 if value < 0 else 32}m{text}\x1b[0m"


def on_colour(text: str, fraction: float) -> str:
    """Text on a coloured background, for a terminal with 256 colours."""
    if not np.isfinite(fraction):
        return text
    red, green, blue = (round(part / 51) for part in rgb(fraction))
    return f"\x1b[48;5;{16 + 36 * red + 6 * green + blue};38;5;{231 if is_dark(fraction) else 16}m{text}\x1b[0m"


def shade(fraction: float, with_sign: bool) -> str:
    """Two characters whose darkness is a magnitude; if signs matter the first one is the sign."""
    if not np.isfinite(fraction):
        return "  "
    character = SHADES[min(len(SHADES) - 1, round(abs(fraction) * (len(SHADES) - 1)))]
    if not with_sign:
        return 2 * character
    return "  " if character == " " else ("+" if fraction > 0 else "-") + character


def colormap(signed: bool):
    """The same colours for matplotlib, from -1 (from 0 if not `signed`) to 1; what is not finite is left blank."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = [*reversed(NEGATIVE), *POSITIVE[1:]] if signed else POSITIVE
    return LinearSegmentedColormap.from_list("jaxlens", stops).with_extremes(bad=(0, 0, 0, 0))

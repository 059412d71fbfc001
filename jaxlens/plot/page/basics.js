// Shared helpers: elements, numbers, colours, and the tooltip. Text from the data is only ever assigned to textContent.

/** An element with a class, children (or a text), and attributes. */
function make(tag, className = "", children = [], attributes = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...(Array.isArray(children) ? children : [children]));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Calls `preview` on hover or focus, `restore` when either ends, and `select` on a click. */
function selectable(element, { preview, restore, select }) {
  for (const name of ["mouseenter", "focus"]) element.addEventListener(name, preview);
  for (const name of ["mouseleave", "blur"]) element.addEventListener(name, restore);
  element.addEventListener("click", select);
  return element;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** A number with about three digits, a true minus sign, and, if `signed`, a plus sign. */
function format(value, signed = false) {
  if (value === null || value === undefined) return "no value";
  const size = Math.abs(value);
  let text = size >= 0.9995 ? size.toPrecision(3) : size >= 0.01 ? size.toFixed(3) : size.toPrecision(2);
  if (size === 0) text = "0";
  else if (size < 1e-4 || size >= 1e6) text = size.toExponential(2);
  else if (size >= 100) text = size.toFixed(0);
  return (value < 0 ? "\u2212" : signed && value > 0 ? "+" : "") + text;
}

/** The label of a token: spaces at its ends become dots. */
const label = (text) => text.replace(/^ +| +$/g, (spaces) => "\u00b7".repeat(spaces.length)) || "\u2205";

const cssVariable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The colours of the page: `ramp` maps a number from -1 to 1 to [red, green, blue]; `series` are the line colours. */
function readColours() {
  const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  const [positive, negative] = ["--positive", "--negative"].map((name) => cssVariable(name).split(/\s+/).map(channels));
  const ramp = (fraction) => {
    const stops = fraction < 0 ? negative : positive;
    const position = clamp(Math.abs(fraction), 0, 1) * (stops.length - 1);
    const low = Math.min(Math.floor(position), stops.length - 2);
    return stops[low].map((from, i) => Math.round(from + (stops[low + 1][i] - from) * (position - low)));
  };
  return { ramp, series: cssVariable("--series").split(/\s+/) };
}

let colours;
const css = (fraction) => `rgb(${colours.ramp(fraction).join(" ")})`;

/** The colour of text on a cell: black or white, whichever has more contrast. */
function textColour(fraction) {
  const [red, green, blue] = colours.ramp(fraction).map((channel) => (channel / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 ? "#ffffff" : "#000000";
}

// --- tooltip

const tooltip = make("div", "tooltip", [], { role: "status", "aria-live": "polite" });
tooltip.hidden = true;

/** Shows lines, each a text or a pair of texts, next to the window coordinates (x, y). */
function showTooltip(lines, x, y) {
  tooltip.replaceChildren(...lines.map((line) => (Array.isArray(line)
    ? make("div", "pair", line.map((text) => make("span", "", make("bdi", "", text))))
    : make("div", "", make("bdi", "", line)))));
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const below = y + 18 + height < innerHeight;
  tooltip.style.left = `${clamp(x + 14, 4, Math.max(4, innerWidth - width - 4))}px`;
  tooltip.style.top = `${below ? y + 18 : Math.max(4, y - height - 12)}px`;
}

const hideTooltip = () => { tooltip.hidden = true; };

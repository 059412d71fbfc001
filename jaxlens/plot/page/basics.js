// Elements, numbers, colours, and the box that tells what is pointed at. Text from the data only becomes textContent.

/** An element with a class, text or children, and attributes. */
function make(tag, className = "", inside = [], attributes = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...(Array.isArray(inside) ? inside : [inside]));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** What can be looked at by pointing or by the keyboard, and kept by clicking. */
function choosable(element, { look, leave, keep }) {
  for (const name of ["mouseenter", "focus"]) element.addEventListener(name, look);
  for (const name of ["mouseleave", "blur"]) element.addEventListener(name, leave);
  element.addEventListener("click", keep);
  return element;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** About three digits, a true minus, and a plus where signs matter. */
function format(value, signed = false) {
  if (value === null || value === undefined) return "no value";
  const size = Math.abs(value);
  let text = size >= 0.9995 ? size.toPrecision(3) : size >= 0.01 ? size.toFixed(3) : size.toPrecision(2);
  if (size === 0) text = "0";
  else if (size < 1e-4 || size >= 1e6) text = size.toExponential(2);
  else if (size >= 100) text = size.toFixed(0);
  return (value < 0 ? "\u2212" : signed && value > 0 ? "+" : "") + text;
}

/** A token as a label: spaces at its ends are seen as dots. */
const label = (text) => text.replace(/^ +| +$/g, (spaces) => "\u00b7".repeat(spaces.length)) || "\u2205";

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The colours of the page: `ramp(fraction)` for -1 to 1 as [red, green, blue], and those of the lines. */
function readColours() {
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const [positive, negative] = ["--positive", "--negative"].map((name) => style(name).split(/\s+/).map(channels));
  const ramp = (fraction) => {
    const stops = fraction < 0 ? negative : positive;
    const place = clamp(Math.abs(fraction), 0, 1) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    return stops[low].map((from, at) => Math.round(from + (stops[low + 1][at] - from) * (place - low)));
  };
  return { ramp, series: style("--series").split(/\s+/) };
}

let colours;
const css = (fraction) => `rgb(${colours.ramp(fraction).join(" ")})`;

/** Black or white, whichever has more contrast on that colour. */
function inkOn(fraction) {
  const [red, green, blue] = colours.ramp(fraction).map((part) => (part / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 ? "#ffffff" : "#000000";
}

// --- what is pointed at

const tip = make("div", "tip", [], { role: "status", "aria-live": "polite" });
tip.hidden = true;

/** Shows lines, each a text or a pair of texts, beside a place in the window. */
function tell(lines, x, y) {
  tip.replaceChildren(...lines.map((line) => (Array.isArray(line)
    ? make("div", "pair", line.map((part) => make("span", "", make("bdi", "", part))))
    : make("div", "", make("bdi", "", line)))));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const below = y + 18 + height < innerHeight;
  tip.style.left = `${clamp(x + 14, 4, Math.max(4, innerWidth - width - 4))}px`;
  tip.style.top = `${below ? y + 18 : Math.max(4, y - height - 12)}px`;
}

const hush = () => { tip.hidden = true; };

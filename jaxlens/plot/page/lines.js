// Line charts, drawn as SVG.

const SVG = "http://www.w3.org/2000/svg";

function makeSvg(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

/** About `count` round numbers between two ends. */
function ticks(low, high, count = 6) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(6)));
}

/** The layout in pixels: the box between the axes, and the coordinates of indices and values. */
function makeLayout(host, data) {
  const width = clamp(host.clientWidth, 280, 860), height = 320;
  const labelWidth = longestWidth(data.x.labels), available = width - 70;
  const rotated = labelWidth > 20 && labelWidth > available / data.x.labels.length;
  const below = rotated ? clamp(labelWidth, 30, 90) + 26 : 42;
  const box = { left: 58, right: width - 12, top: 10, bottom: height - below };
  const spacing = (box.right - box.left) / data.x.labels.length;
  const span = data.high - data.low || 1;
  return {
    width, height, box, rotated, spacing, step: Math.ceil((rotated ? 13 : labelWidth + 8) / spacing),
    xOf: (index) => box.left + (index + 0.5) * spacing,
    yOf: (value) => box.bottom - ((value - data.low) / span) * (box.bottom - box.top),
    indexAt: (x) => clamp(Math.floor((x - box.left) / spacing), 0, data.x.labels.length - 1),
  };
}

/** Draws the grid lines with their values, as many x labels as fit, and the names of both axes. */
function drawAxes(svg, data, layout) {
  const { box } = layout;
  for (const value of ticks(data.low, data.high)) {
    const y = layout.yOf(value);
    svg.append(makeSvg("line", { class: value === 0 ? "zero" : "rule", x1: box.left, x2: box.right, y1: y, y2: y }));
    const text = String(value).replace("-", "\u2212");
    svg.append(makeSvg("text", { x: box.left - 8, y: y + 4, "text-anchor": "end" }, text));
  }
  data.x.labels.forEach((name, index) => {
    if (index % layout.step) return;
    const x = layout.xOf(index), y = box.bottom + 15;
    const anchor = layout.rotated
      ? { "text-anchor": "end", transform: `rotate(-90 ${x} ${y}) translate(8 4)` } : { "text-anchor": "middle" };
    svg.append(makeSvg("text", { x, y, ...anchor }, name.length > 14 ? `${name.slice(0, 13)}\u2026` : name));
  });
  const middle = (box.top + box.bottom) / 2;
  const centred = { "text-anchor": "middle" };
  svg.append(makeSvg("text", { x: (box.left + box.right) / 2, y: layout.height - 6, ...centred }, data.x.name));
  svg.append(makeSvg("text", { x: 12, y: middle, transform: `rotate(-90 12 ${middle})`, ...centred }, data.unit));
}

/** Draws a line, with gaps at missing values. Draws dots if `dots`, unless they would overlap. */
function drawCurve(svg, row, colour, width, dots, layout) {
  const points = row.map((value, index) => (value === null ? null : [layout.xOf(index), layout.yOf(value)]));
  const path = points.map((point, index) => point && `${points[index - 1] ? "L" : "M"}${point.join(" ")}`);
  const stroke = { fill: "none", stroke: colour, "stroke-width": width, "stroke-linejoin": "round" };
  svg.append(makeSvg("path", { d: path.filter(Boolean).join(""), ...stroke }));
  if (!dots || layout.spacing < 9) return;
  for (const [cx, cy] of points.filter(Boolean)) svg.append(makeSvg("circle", { cx, cy, r: 2.5, fill: colour }));
}

/** Calls `point` with the index under the mouse or the arrow keys and its window coordinates, or with null. */
function trackIndex(svg, layout, point) {
  let current = null;
  const move = (index, x, y) => { current = index; point(index, x, y); };
  svg.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect();
    move(layout.indexAt((event.clientX - box.left) * (layout.width / box.width)), event.clientX, event.clientY);
  });
  for (const name of ["mouseleave", "blur"]) svg.addEventListener(name, () => move(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    const index = layout.indexAt(layout.xOf(current === null ? (step > 0 ? 0 : Infinity) : current + step));
    move(index, box.left + layout.xOf(index), box.top + 40);
  });
}

function drawLines(host, data) {
  const { x, names, values, summary, unit } = data;
  const layout = makeLayout(host, data), { width, height, box } = layout;
  const svg = makeSvg("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, tabindex: "0", role: "img",
    "aria-label": `${names.length} lines with ${x.labels.length} points along ${x.name || "an axis"}; arrow keys move.`,
  });
  drawAxes(svg, data, layout);
  if (summary) values.forEach((row) => drawCurve(svg, row, cssVariable("--faint"), 1, false, layout));
  const lines = summary ? [{ name: `mean of ${names.length}`, row: summary.mean }]
    : names.map((name, index) => ({ name, row: values[index] }));
  lines.forEach((line, index) => drawCurve(svg, line.row, colours.series[index], summary ? 3 : 2, true, layout));
  const cursor = makeSvg("line", { class: "cursor", y1: box.top, y2: box.bottom, "stroke-dasharray": "3 3" });
  cursor.style.visibility = "hidden";
  svg.append(cursor);

  trackIndex(svg, layout, (index, left, top) => {
    cursor.style.visibility = index === null ? "hidden" : "visible";
    if (index === null) { hideTooltip(); return; }
    for (const side of ["x1", "x2"]) cursor.setAttribute(side, layout.xOf(index));
    const pairs = lines.map((line) => [names.length > 1 ? line.name : unit || "value", format(line.row[index])]);
    const range = ["lowest", "highest"].map((name) => summary && [name, format(summary[name][index])]);
    showTooltip([describeIndex(x, index), ...pairs, ...range.filter(Boolean)], left, top);
  });

  const legend = lines.map((line, index) => {
    const swatch = make("i");
    swatch.style.background = colours.series[index];
    return make("span", "", [swatch, line.name]);
  });
  host.append(...(names.length > 1 ? [make("div", "legend", legend)] : []), svg);
}

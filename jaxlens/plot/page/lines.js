// Lines over an axis of places, drawn as SVG.

const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

/** Round numbers between two ends. */
function ticks(low, high, count = 6) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, number) => Number(((first + number) * step).toPrecision(6)));
}

/** Where things are: the box between the axes, and the pixel of every place and value. */
function layOut(host, data) {
  const width = clamp(host.clientWidth, 280, 860), height = 320;
  const needed = longest(data.x.labels), room = width - 70;
  const turned = needed > 20 && needed > room / data.x.labels.length;
  const below = turned ? clamp(needed, 30, 90) + 26 : 42;
  const box = { left: 58, right: width - 12, top: 10, bottom: height - below };
  const each = (box.right - box.left) / data.x.labels.length;
  const span = data.high - data.low || 1;
  return {
    width, height, box, turned, each, step: Math.ceil((turned ? 13 : needed + 8) / each),
    across: (place) => box.left + (place + 0.5) * each,
    up: (value) => box.bottom - ((value - data.low) / span) * (box.bottom - box.top),
    at: (pixel) => clamp(Math.floor((pixel - box.left) / each), 0, data.x.labels.length - 1),
  };
}

/** Both axes: rules with numbers, as many places as there is room for, and what is measured. */
function drawAxes(svg, data, plan) {
  const { box } = plan;
  for (const value of ticks(data.low, data.high)) {
    const y = plan.up(value);
    svg.append(draw("line", { class: value === 0 ? "zero" : "rule", x1: box.left, x2: box.right, y1: y, y2: y }));
    const text = String(value).replace("-", "\u2212");
    svg.append(draw("text", { x: box.left - 8, y: y + 4, "text-anchor": "end" }, text));
  }
  data.x.labels.forEach((name, place) => {
    if (place % plan.step) return;
    const x = plan.across(place), y = box.bottom + 15;
    const how = plan.turned
      ? { "text-anchor": "end", transform: `rotate(-90 ${x} ${y}) translate(8 4)` } : { "text-anchor": "middle" };
    svg.append(draw("text", { x, y, ...how }, name.length > 14 ? `${name.slice(0, 13)}\u2026` : name));
  });
  const middle = (box.top + box.bottom) / 2;
  const centred = { "text-anchor": "middle" };
  svg.append(draw("text", { x: (box.left + box.right) / 2, y: plan.height - 6, ...centred }, data.x.name));
  svg.append(draw("text", { x: 12, y: middle, transform: `rotate(-90 12 ${middle})`, ...centred }, data.unit));
}

/** A line, with gaps where there is no value, and dots unless they would run together. */
function drawCurve(svg, row, colour, width, dots, plan) {
  const places = row.map((value, place) => (value === null ? null : [plan.across(place), plan.up(value)]));
  const path = places.map((place, number) => place && `${places[number - 1] ? "L" : "M"}${place.join(" ")}`);
  const stroke = { fill: "none", stroke: colour, "stroke-width": width, "stroke-linejoin": "round" };
  svg.append(draw("path", { d: path.filter(Boolean).join(""), ...stroke }));
  if (!dots || plan.each < 9) return;
  for (const [cx, cy] of places.filter(Boolean)) svg.append(draw("circle", { cx, cy, r: 2.5, fill: colour }));
}

/** Calls `point` with the place that the mouse or the arrow keys choose, and where on the screen; or with null. */
function followPlaces(svg, plan, point) {
  let at = null;
  const move = (place, x, y) => { at = place; point(place, x, y); };
  svg.addEventListener("mousemove", (event) => {
    const corner = svg.getBoundingClientRect();
    move(plan.at((event.clientX - corner.left) * (plan.width / corner.width)), event.clientX, event.clientY);
  });
  for (const name of ["mouseleave", "blur"]) svg.addEventListener(name, () => move(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const corner = svg.getBoundingClientRect();
    const place = plan.at(plan.across(at === null ? (step > 0 ? 0 : Infinity) : at + step));
    move(place, corner.left + plan.across(place), corner.top + 40);
  });
}

function drawLines(host, data) {
  const { x, names, values, summary, unit } = data;
  const plan = layOut(host, data);
  const svg = draw("svg", {
    width: plan.width, height: plan.height, viewBox: `0 0 ${plan.width} ${plan.height}`, tabindex: "0", role: "img",
    "aria-label": `${names.length} lines over ${x.labels.length} places of ${x.name || "an axis"}; arrow keys move.`,
  });
  drawAxes(svg, data, plan);
  if (summary) values.forEach((row) => drawCurve(svg, row, style("--faint"), 1, false, plan));
  const shown = summary ? [{ name: `mean of ${names.length}`, row: summary.mean }]
    : names.map((name, number) => ({ name, row: values[number] }));
  shown.forEach((line, number) => drawCurve(svg, line.row, colours.series[number], summary ? 3 : 2, true, plan));
  const now = draw("line", { class: "now", y1: plan.box.top, y2: plan.box.bottom, "stroke-dasharray": "3 3" });
  now.style.visibility = "hidden";
  svg.append(now);

  followPlaces(svg, plan, (place, left, top) => {
    now.style.visibility = place === null ? "hidden" : "visible";
    if (place === null) { hush(); return; }
    for (const side of ["x1", "x2"]) now.setAttribute(side, plan.across(place));
    const told = shown.map((line) => [names.length > 1 ? line.name : unit || "value", format(line.row[place])]);
    const range = ["lowest", "highest"].map((which) => summary && [which, format(summary[which][place])]);
    tell([whereIs(x, place), ...told, ...range.filter(Boolean)], left, top);
  });

  const key = shown.map((line, number) => {
    const swatch = make("i");
    swatch.style.background = colours.series[number];
    return make("span", "", [swatch, line.name]);
  });
  host.append(...(names.length > 1 ? [make("div", "key", key)] : []), svg);
}

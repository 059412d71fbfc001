// Grids of coloured cells: heat maps and the logit lens.

/** Whether the names of columns are so long that they must stand upright. */
const isTurned = (names, size) => names.some((name) => name.length * 6.2 > size - 2);

/** The names along one side of a grid; as many as there is room for, and always that of the cell pointed at. */
function axisLabels(names, size, side, extent) {
  const turned = side === "columns" && isTurned(names, size);
  const step = Math.ceil((side === "columns" && !turned ? 1 : 13) / size);
  const box = make("div", side);
  const labels = names.map((name, place) => {
    const element = make("span", turned ? "label turned" : "label", name, { title: name });
    const along = side === "rows" ? "top" : "left";
    const across = side === "rows" || turned ? 14 : size;
    element.style[along] = `${place * size + (size - across) / 2}px`;
    if (side === "rows") element.style.lineHeight = "14px";
    else if (turned) Object.assign(element.style, { width: "14px", lineHeight: "14px", maxHeight: `${extent - 4}px` });
    else Object.assign(element.style, { width: `${size}px`, bottom: "2px" });
    element.hidden = place % step !== 0;
    box.append(element);
    return element;
  });
  let last = null;
  const point = (place) => {
    if (last !== null) { labels[last].classList.remove("on"); labels[last].hidden = last % step !== 0; }
    last = place;
    if (place !== null) { labels[place].classList.add("on"); labels[place].hidden = false; }
  };
  return { box, point, turned };
}

/** How many pixels the longest name takes, and how many the names of rows are given. */
const longest = (names) => Math.max(...names.map((name) => name.length), 1) * 6.4;
const beside = (rows) => clamp(longest([...rows.labels, `${rows.name} \u2193`]), 16, 130) + 10;

/**
 * A grid of coloured cells on a canvas, with names along its sides, that can be pointed at by mouse and by arrow keys.
 *
 * rows, columns: {name, labels}; value(row, column): a number, or null where there is no cell; word(row, column): text
 * in a cell; lines(row, column): what to tell of it; pointed(row, column): called with the cell pointed at, or null.
 */
function matrix(spec) {
  const { rows, columns, width, height } = spec;
  const across = columns.labels.length, down = rows.labels.length;
  const canvas = make("canvas", "", [], { tabindex: "0", role: "img", "aria-label": spec.about });
  const here = make("div", "here");
  const cells = make("div", "cells", [canvas, here]);
  const left = beside(rows);
  const top = isTurned(columns.labels, width) ? clamp(longest(columns.labels), 20, 96) + 6 : 18;
  const rowLabels = axisLabels(rows.labels, height, "rows");
  const columnLabels = axisLabels(columns.labels, width, "columns", top);
  Object.assign(rowLabels.box.style, { width: `${left}px`, height: `${down * height}px` });
  Object.assign(columnLabels.box.style, { width: `${across * width}px`, height: `${top}px` });
  const element = make("div", "matrix", [
    make("div", "corner"), make("div", "axis", columns.name && `${columns.name} \u2192`),
    make("div", "corner axis", rows.name && `${rows.name} \u2193`), columnLabels.box, rowLabels.box, cells,
  ]);
  let at = null;
  const exists = (row, column) => row >= 0 && row < down && column >= 0 && column < across
    && spec.value(row, column) !== undefined;

  function paint() {
    const sharp = Math.min(window.devicePixelRatio || 1, 2);
    Object.assign(canvas, { width: across * width * sharp, height: down * height * sharp });
    Object.assign(canvas.style, { width: `${across * width}px`, height: `${down * height}px` });
    const context = canvas.getContext("2d");
    context.scale(sharp, sharp);
    Object.assign(context, { textAlign: "center", textBaseline: "middle", font: "11px system-ui, sans-serif" });
    const gap = Math.min(width, height) >= 9 ? 1 : 0;
    for (let row = 0; row < down; row++) {
      for (let column = 0; column < across; column++) {
        const value = spec.value(row, column);
        if (value === null || value === undefined) continue;
        const fraction = value / spec.limit;
        context.fillStyle = css(fraction);
        context.fillRect(column * width, row * height, width - gap, height - gap);
        if (!spec.word) continue;
        context.fillStyle = inkOn(fraction);
        context.fillText(cut(context, spec.word(row, column), width - 8), (column + 0.5) * width, (row + 0.5) * height);
      }
    }
  }

  function name(row, column) {
    rowLabels.point(row);
    columnLabels.point(column);
  }

  function point(row, column, x, y) {
    const inside = row !== null && exists(row, column);
    at = inside ? [row, column] : null;
    here.hidden = !inside;
    name(null, null);
    if (spec.pointed) spec.pointed(inside ? row : null, inside ? column : null);
    if (!inside) return hush();
    name(row, column);
    const place = { left: column * width, top: row * height, width, height };
    for (const [side, value] of Object.entries(place)) here.style[side] = `${value}px`;
    const box = canvas.getBoundingClientRect();
    return tell(spec.lines(row, column), x ?? box.left + place.left + width, y ?? box.top + place.top + height / 2);
  }

  here.hidden = true;
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const place = [event.clientY - box.top, event.clientX - box.left];
    point(Math.floor(place[0] / height), Math.floor(place[1] / width), event.clientX, event.clientY);
  });
  canvas.addEventListener("mouseleave", () => point(null));
  canvas.addEventListener("blur", () => point(null));
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { point(null); return; }
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = at ? [at[0] + step[0], at[1] + step[1]] : [down - 1, 0];
    if (exists(row, column)) point(row, column);
  });
  paint();
  return { element, paint, name };
}

/** Text made to fit, with an ellipsis. */
function cut(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let kept = Array.from(text);
  while (kept.length > 1 && context.measureText(`${kept.join("")}\u2026`).width > width) kept = kept.slice(0, -1);
  return `${kept.join("")}\u2026`;
}

/** The legend: the colours from one end of the scale to the other. */
function scale(limit, signed, unit) {
  const ramp = make("span", "ramp");
  const places = Array.from({ length: 17 }, (_, place) => (signed ? place / 8 - 1 : place / 16));
  ramp.style.background = `linear-gradient(to right, ${places.map(css).join(", ")})`;
  const ends = [make("span", "", format(signed ? -limit : 0)), ramp, make("span", "", format(limit, signed))];
  return make("div", "scale", unit ? [...ends, make("span", "", unit)] : ends);
}

/** How wide a cell may be, if so many of them share the room that the row names leave. */
const share = (room, rows, columns, low, high) => Math.floor(
  clamp((room - beside(rows) - 6) / columns.labels.length, low, high),
);

const aboutGrid = (rows, columns) => `Grid of ${rows.labels.length} rows (${rows.name || "row"}) and `
  + `${columns.labels.length} columns (${columns.name || "column"}); arrow keys move from cell to cell.`;

/** A place on an axis in words, with its number unless its name is one or ends in it. */
function whereIs(axis, place) {
  const name = axis.labels[place];
  const known = /^[\d.]*$/.test(name) || name.endsWith(` ${place}`);
  return `${axis.name || ""} ${name}${known ? "" : ` (${place})`}`.trim();
}

function drawHeatmap(host, data) {
  const { rows, columns, panels, limit, signed } = data;
  const perRow = clamp(Math.floor(host.clientWidth / 300), 1, panels.length);
  const width = share((host.clientWidth - 26 * (perRow - 1)) / perRow, rows, columns, 2, 44);
  const height = rows.labels.length > 45 ? clamp(Math.floor(900 / rows.labels.length), 2, 16) : 20;
  const drawn = panels.map((panel) => make("div", "panel", [
    ...(panel.name ? [make("div", "name", panel.name)] : []),
    matrix({
      rows, columns, width, height, limit, about: `${panel.name} ${aboutGrid(rows, columns)}`,
      value: (row, column) => panel.values[row][column],
      lines: (row, column) => [
        `${format(panel.values[row][column], signed)} ${data.unit}`,
        [panel.name, whereIs(rows, row), whereIs(columns, column)].filter(Boolean).join(", "),
      ],
    }).element,
  ]));
  host.append(make("div", "panels", drawn), scale(limit, signed, data.unit));
}

function drawLens(host, data) {
  const { rows, columns, strings, ids, probabilities } = data;
  const percent = (value) => `${format(100 * value)} %`;
  const grid = matrix({
    rows, columns, limit: 1, about: aboutGrid(rows, columns),
    width: share(host.clientWidth, rows, columns, 66, 104), height: 22,
    value: (row, column) => probabilities[row][column][0],
    word: (row, column) => label(strings[ids[row][column][0]]),
    lines: (row, column) => [
      `${whereIs(rows, row)}, ${whereIs(columns, column)}`,
      ...ids[row][column].map((id, rank) => [label(strings[id]), percent(probabilities[row][column][rank])]),
    ],
  });
  host.append(grid.element, scale(1, false, "probability of the likeliest next token"));
}

// Grids of coloured cells: heat maps and the logit lens.

/** Whether column names are too long to be horizontal. */
const isVertical = (names, size) => names.some((name) => name.length * 6.2 > size - 2);

/** The labels along a side of a grid: as many as fit, and always the label of the highlighted index. */
function axisLabels(names, size, side, depth) {
  const vertical = side === "columns" && isVertical(names, size);
  const step = Math.ceil((side === "columns" && !vertical ? 1 : 13) / size);
  const box = make("div", side);
  const labels = names.map((name, index) => {
    const element = make("span", vertical ? "label vertical" : "label", name, { title: name });
    const edge = side === "rows" ? "top" : "left";
    const thickness = side === "rows" || vertical ? 14 : size;
    element.style[edge] = `${index * size + (size - thickness) / 2}px`;
    if (side === "rows") element.style.lineHeight = "14px";
    else if (vertical) Object.assign(element.style, { width: "14px", lineHeight: "14px", maxHeight: `${depth - 4}px` });
    else Object.assign(element.style, { width: `${size}px`, bottom: "2px" });
    element.hidden = index % step !== 0;
    box.append(element);
    return element;
  });
  let last = null;
  const highlight = (index) => {
    if (last !== null) { labels[last].classList.remove("active"); labels[last].hidden = last % step !== 0; }
    last = index;
    if (index !== null) { labels[index].classList.add("active"); labels[index].hidden = false; }
  };
  return { box, highlight };
}

/** The width of the longest name, and of the column of row names, in pixels. */
const longestWidth = (names) => Math.max(...names.map((name) => name.length), 1) * 6.4;
const rowNamesWidth = (rows) => clamp(longestWidth([...rows.labels, `${rows.name} \u2193`]), 16, 130) + 10;

/**
 * A grid of coloured cells on a canvas, with labels along two sides, for the mouse and the arrow keys.
 *
 * rows, columns: {name, labels}; value(row, column): a number, null for a blank cell, undefined outside the grid;
 * word(row, column): the text in a cell; lines(row, column): the lines of its tooltip; onPoint(row, column): called for
 * the cell under the pointer, or with nulls.
 */
function matrix(spec) {
  const { rows, columns, width, height } = spec;
  const across = columns.labels.length, down = rows.labels.length;
  const canvas = make("canvas", "", [], { tabindex: "0", role: "img", "aria-label": spec.description });
  const cursor = make("div", "cursor");
  const cells = make("div", "cells", [canvas, cursor]);
  const namesHeight = isVertical(columns.labels, width) ? clamp(longestWidth(columns.labels), 20, 96) + 6 : 18;
  const rowLabels = axisLabels(rows.labels, height, "rows");
  const columnLabels = axisLabels(columns.labels, width, "columns", namesHeight);
  Object.assign(rowLabels.box.style, { width: `${rowNamesWidth(rows)}px`, height: `${down * height}px` });
  Object.assign(columnLabels.box.style, { width: `${across * width}px`, height: `${namesHeight}px` });
  const element = make("div", "matrix", [
    make("div", "corner"), make("div", "axis", columns.name && `${columns.name} \u2192`),
    make("div", "corner axis", rows.name && `${rows.name} \u2193`), columnLabels.box, rowLabels.box, cells,
  ]);
  let current = null;
  const exists = (row, column) => row >= 0 && row < down && column >= 0 && column < across
    && spec.value(row, column) !== undefined;

  function paint() {
    const pixelRatio = Math.min(window.devicePixelRatio || 1, 2);
    Object.assign(canvas, { width: across * width * pixelRatio, height: down * height * pixelRatio });
    Object.assign(canvas.style, { width: `${across * width}px`, height: `${down * height}px` });
    const context = canvas.getContext("2d");
    context.scale(pixelRatio, pixelRatio);
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
        context.fillStyle = textColour(fraction);
        const text = truncate(context, spec.word(row, column), width - 8);
        context.fillText(text, (column + 0.5) * width, (row + 0.5) * height);
      }
    }
  }

  function highlight(row, column) {
    rowLabels.highlight(row);
    columnLabels.highlight(column);
  }

  function point(row, column, x, y) {
    const inside = row !== null && exists(row, column);
    current = inside ? [row, column] : null;
    cursor.hidden = !inside;
    highlight(null, null);
    if (spec.onPoint) spec.onPoint(inside ? row : null, inside ? column : null);
    if (!inside) return hideTooltip();
    highlight(row, column);
    const left = column * width, top = row * height, box = canvas.getBoundingClientRect();
    for (const [side, value] of Object.entries({ left, top, width, height })) cursor.style[side] = `${value}px`;
    return showTooltip(spec.lines(row, column), x ?? box.left + left + width, y ?? box.top + top + height / 2);
  }

  cursor.hidden = true;
  canvas.addEventListener("mousemove", (event) => {
    const { clientX: x, clientY: y } = event, box = canvas.getBoundingClientRect();
    point(Math.floor((y - box.top) / height), Math.floor((x - box.left) / width), x, y);
  });
  canvas.addEventListener("mouseleave", () => point(null));
  canvas.addEventListener("blur", () => point(null));
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { point(null); return; }
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = current ? [current[0] + step[0], current[1] + step[1]] : [down - 1, 0];
    if (exists(row, column)) point(row, column);
  });
  paint();
  return { element, paint, highlight };
}

/** The text, truncated with an ellipsis if it is wider than `width`. */
function truncate(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let kept = Array.from(text);
  while (kept.length > 1 && context.measureText(`${kept.join("")}\u2026`).width > width) kept = kept.slice(0, -1);
  return `${kept.join("")}\u2026`;
}

/** The legend of the colour scale. */
function scale(limit, signed, unit) {
  const ramp = make("span", "ramp");
  const fractions = Array.from({ length: 17 }, (_, i) => (signed ? i / 8 - 1 : i / 16));
  ramp.style.background = `linear-gradient(to right, ${fractions.map(css).join(", ")})`;
  const ends = [make("span", "", format(signed ? -limit : 0)), ramp, make("span", "", format(limit, signed))];
  return make("div", "scale", unit ? [...ends, make("span", "", unit)] : ends);
}

/** The width of a cell, between `low` and `high`, for which the row names and all columns fit into `width`. */
const cellSize = (width, rows, columns, low, high) => Math.floor(
  clamp((width - rowNamesWidth(rows) - 6) / columns.labels.length, low, high),
);

const describeGrid = (rows, columns) => `Grid of ${rows.labels.length} rows (${rows.name || "row"}) and `
  + `${columns.labels.length} columns (${columns.name || "column"}); arrow keys move from cell to cell.`;

/** The axis name and the label of an index; also the index, unless the label is a number or ends with the index. */
function describeIndex(axis, index) {
  const name = axis.labels[index];
  const containsIndex = /^[\d.]*$/.test(name) || name.endsWith(` ${index}`);
  return `${axis.name || ""} ${name}${containsIndex ? "" : ` (${index})`}`.trim();
}

function drawHeatmap(host, data) {
  const { rows, columns, panels, limit, signed } = data;
  const perRow = clamp(Math.floor(host.clientWidth / 300), 1, panels.length);
  const width = cellSize((host.clientWidth - 26 * (perRow - 1)) / perRow, rows, columns, 2, 44);
  const height = rows.labels.length > 45 ? clamp(Math.floor(900 / rows.labels.length), 2, 16) : 20;
  const elements = panels.map((panel) => make("div", "panel", [
    ...(panel.name ? [make("div", "name", panel.name)] : []),
    matrix({
      rows, columns, width, height, limit, description: `${panel.name} ${describeGrid(rows, columns)}`,
      value: (row, column) => panel.values[row][column],
      lines: (row, column) => [
        `${format(panel.values[row][column], signed)} ${data.unit}`,
        [panel.name, describeIndex(rows, row), describeIndex(columns, column)].filter(Boolean).join(", "),
      ],
    }).element,
  ]));
  host.append(make("div", "panels", elements), scale(limit, signed, data.unit));
}

function drawLens(host, data) {
  const { rows, columns, strings, ids, probabilities } = data;
  const percent = (value) => `${format(100 * value)} %`;
  const grid = matrix({
    rows, columns, limit: 1, description: describeGrid(rows, columns),
    width: cellSize(host.clientWidth, rows, columns, 66, 104), height: 22,
    value: (row, column) => probabilities[row][column][0],
    word: (row, column) => label(strings[ids[row][column][0]]),
    lines: (row, column) => [
      `${describeIndex(rows, row)}, ${describeIndex(columns, column)}`,
      ...ids[row][column].map((id, rank) => [label(strings[id]), percent(probabilities[row][column][rank])]),
    ],
  });
  host.append(grid.element, scale(1, false, "probability of the likeliest next token"));
}

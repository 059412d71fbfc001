// Attention patterns: thumbnails of the heads, the text, and the weights of the selected head.

/** A thumbnail of a head, with a pixel for each weight. */
function thumbnail(weights, data) {
  const size = data.tokens.length;
  const canvas = make("canvas", "", [], { width: size, height: size, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  weights.forEach((row, from) => row.forEach((weight, to) => {
    if (weight === null) return;
    image.data.set([...colours.ramp((weight * data.step) / data.limit), 255], 4 * (from * size + to));
  }));
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The element of a token, followed by a line break if the token ends with a newline. */
const withBreak = (span) => (span.textContent.endsWith("\u21b5") ? [span, make("br")] : [span]);

function drawAttention(host, data, state) {
  const { tokens, names, heads, step, limit, signed } = data;
  const labels = tokens.map(label);
  const numbered = tokens.every((text, index) => text === String(index));
  const describe = (index) => (numbered ? labels[index] : `${labels[index]} (${index})`);
  const isSingle = names.length === 1;
  // `state` is the selection. `head` and `token` are what is drawn, which differs from the selection in a preview.
  state.head ??= 0;
  state.token ??= tokens.length - 1;
  state.isQuery ??= true;
  let head = state.head, token = state.token;

  const weight = (from, to) => {
    const steps = heads[head][from][to];
    return steps === undefined ? undefined : steps === null ? null : steps * step;
  };
  const weightOn = (other) => (state.isQuery ? weight(token, other) : weight(other, token));

  const restore = () => show(state.head, state.token);
  const buttons = names.map((name, index) => selectable(
    make("button", "", [thumbnail(heads[index], data), name], { type: "button" }),
    { preview: () => show(index, token), restore, select: () => { state.head = index; restore(); } },
  ));
  const classes = ["heads", names.length > 32 ? "small" : "", tokens.length <= 64 ? "pixelated" : ""].join(" ");
  const thumbnails = make("div", classes, isSingle ? [] : buttons, { role: "group", "aria-label": "heads" });

  const spans = tokens.map((text, index) => {
    const span = selectable(
      make("span", "token selectable", text, { role: "button", tabindex: "0" }),
      { preview: () => show(head, index), restore, select: () => { state.token = index; restore(); } },
    );
    span.addEventListener("keydown", (event) => {
      const next = { ArrowLeft: index - 1, ArrowRight: index + 1 }[event.key];
      if (spans[next]) { event.preventDefault(); spans[next].focus(); }
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); span.click(); }
    });
    return span;
  });
  const tokenRow = make("div", numbered ? "token-row numbered" : "token-row", spans.flatMap(withBreak));
  const summary = make("div", "summary", [], { "aria-live": "polite" });
  const directions = [["attends to", true], ["is attended to by", false]].map(([text, isQuery]) => {
    const button = make("button", "", text, { type: "button" });
    button.addEventListener("click", () => { state.isQuery = isQuery; restore(); });
    return button;
  });
  const controls = make("div", "controls", [
    make("span", "muted", "Point at a token to see what it"), make("span", "toggle", directions, { role: "group" }),
    make("span", "muted", isSingle ? "Click to keep it." : "Click to keep a token or a head."),
  ]);

  const axes = { rows: { name: "from", labels }, columns: { name: "to", labels } };
  const cell = cellSize(host.clientWidth, axes.rows, axes.columns, 2, 26);
  const grid = matrix({
    ...axes, width: cell, height: cell, limit, value: weight,
    description: `Weights of the chosen head, ${describeGrid(axes.rows, axes.columns)}`,
    lines: (from, to) => [
      format(weight(from, to), signed), `${describe(from)} \u2192 ${describe(to)}`, `head ${names[head]}`,
    ],
    onPoint: (from, to) => highlight(from === null ? state.token : state.isQuery ? from : to),
  });

  /** Colours the text by the weights of a token, and lists the largest weights. */
  function highlight(index) {
    token = index;
    spans.forEach((span, other) => {
      const fraction = (weightOn(other) ?? 0) / limit;
      const visible = Math.abs(fraction) > 0.02;
      span.style.background = visible ? css(fraction) : "none";
      span.style.color = visible ? textColour(fraction) : "";
      span.classList.toggle("active", other === index);
    });
    const order = spans.map((_, other) => other).filter((other) => weightOn(other));
    order.sort((a, b) => Math.abs(weightOn(b)) - Math.abs(weightOn(a)));
    const best = order.slice(0, 5).map((other) => `${describe(other)} ${format(weightOn(other), signed)}`);
    grid.highlight(state.isQuery ? index : null, state.isQuery ? null : index);
    const verb = state.isQuery ? "attends to" : "is attended to by";
    const prefix = isSingle ? "" : `Head ${names[head]}: `;
    summary.textContent = `${prefix}${describe(index)} ${verb} ${best.join(", ") || "nothing"}`;
  }

  function show(newHead, newToken) {
    const changed = newHead !== head;
    head = newHead;
    if (changed) grid.paint();
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === head)));
    directions.forEach((button, index) => button.setAttribute("aria-pressed", String((index === 0) === state.isQuery)));
    highlight(newToken);
  }

  host.append(thumbnails, controls, tokenRow, summary, grid.element, scale(limit, signed, "attention"));
  show(head, token);
}

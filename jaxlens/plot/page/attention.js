// Attention patterns: heads to choose from, the text, and the weights of one head.

/** A head in small: one pixel for each weight. */
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

/** A token of a text; after a newline the line ends. */
const withBreak = (span) => (span.textContent.endsWith("\u21b5") ? [span, make("br")] : [span]);

function drawAttention(host, data, state) {
  const { tokens, names, heads, step, limit, signed } = data;
  const labels = tokens.map(label);
  const numbered = tokens.every((text, number) => text === String(number));
  const called = (number) => (numbered ? labels[number] : `${labels[number]} (${number})`);
  const one = names.length === 1;
  state.head ??= 0;
  state.token ??= tokens.length - 1;
  state.from ??= true;
  let head = state.head, token = state.token;

  const weight = (from, to) => {
    const found = heads[head][from][to];
    return found === undefined ? undefined : found === null ? null : found * step;
  };
  const across = (other) => (state.from ? weight(token, other) : weight(other, token));

  const leave = () => show(state.head, state.token);
  const buttons = names.map((name, number) => choosable(
    make("button", "", [thumbnail(heads[number], data), name], { type: "button" }),
    { look: () => show(number, token), leave, keep: () => { state.head = number; leave(); } },
  ));
  const look = ["heads", names.length > 32 ? "small" : "", tokens.length <= 64 ? "pixels" : ""].join(" ");
  const thumbnails = make("div", look, one ? [] : buttons, { role: "group", "aria-label": "heads" });

  const spans = tokens.map((text, number) => {
    const span = choosable(
      make("span", "token pick", text, { role: "button", tabindex: "0" }),
      { look: () => show(head, number), leave, keep: () => { state.token = number; leave(); } },
    );
    span.addEventListener("keydown", (event) => {
      const next = { ArrowLeft: number - 1, ArrowRight: number + 1 }[event.key];
      if (spans[next]) { event.preventDefault(); spans[next].focus(); }
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); span.click(); }
    });
    return span;
  });
  const strip = make("div", numbered ? "strip numbered" : "strip", spans.flatMap(withBreak));
  const said = make("div", "said", [], { "aria-live": "polite" });
  const directions = [["attends to", true], ["is attended to by", false]].map(([text, from]) => {
    const button = make("button", "", text, { type: "button" });
    button.addEventListener("click", () => { state.from = from; leave(); });
    return button;
  });
  const reading = make("div", "reading", [
    make("span", "quiet", "Point at a token to see what it"), make("span", "choice", directions, { role: "group" }),
    make("span", "quiet", one ? "Click to keep it." : "Click to keep a token or a head."),
  ]);

  const axes = { rows: { name: "from", labels }, columns: { name: "to", labels } };
  const cell = share(host.clientWidth, axes.rows, axes.columns, 2, 26);
  const grid = matrix({
    ...axes, width: cell, height: cell, limit, value: weight,
    about: `Weights of the chosen head, ${aboutGrid(axes.rows, axes.columns)}`,
    lines: (from, to) => [
      format(weight(from, to), signed), `${called(from)} \u2192 ${called(to)}`, `head ${names[head]}`,
    ],
    pointed: (from, to) => mark(from === null ? state.token : state.from ? from : to),
  });

  /** Colours the text by the weights of one token. */
  function mark(number) {
    token = number;
    spans.forEach((span, other) => {
      const fraction = (across(other) ?? 0) / limit;
      const seen = Math.abs(fraction) > 0.02;
      span.style.background = seen ? css(fraction) : "none";
      span.style.color = seen ? inkOn(fraction) : "";
      span.classList.toggle("on", other === number);
    });
    const order = spans.map((_, other) => other).filter((other) => across(other));
    order.sort((a, b) => Math.abs(across(b)) - Math.abs(across(a)));
    const best = order.slice(0, 5).map((other) => `${called(other)} ${format(across(other), signed)}`);
    grid.name(state.from ? number : null, state.from ? null : number);
    const verb = state.from ? "attends to" : "is attended to by";
    const whose = one ? "" : `Head ${names[head]}: `;
    said.textContent = `${whose}${called(number)} ${verb} ${best.join(", ") || "nothing"}`;
  }

  function show(newHead, newToken) {
    const changed = newHead !== head;
    head = newHead;
    if (changed) grid.paint();
    buttons.forEach((button, number) => button.setAttribute("aria-pressed", String(number === head)));
    directions.forEach((button, number) => button.setAttribute("aria-pressed", String((number === 0) === state.from)));
    mark(newToken);
  }

  host.append(thumbnails, reading, strip, said, grid.element, scale(limit, signed, "attention"));
  show(head, token);
}

// Coloured text, and bars.

function drawTokens(host, data) {
  const { tokens, names, values, notes, limit, signed, unit } = data;
  values.forEach((row, number) => {
    const spans = tokens.flatMap((text, place) => {
      const value = row[place];
      const span = make("span", "token", text, { tabindex: "0" });
      if (value !== null) Object.assign(span.style, { background: css(value / limit), color: inkOn(value / limit) });
      const pairs = (notes[place] ?? []).map(([note, size]) => (size === null ? note : [label(note), format(size)]));
      const lines = [`${label(text)}: ${format(value, signed)} ${value === null ? "" : unit}`, ...pairs];
      const show = (event) => {
        const box = span.getBoundingClientRect();
        tell(lines, event.clientX ?? box.left, event.clientY ?? box.bottom - 12);
      };
      return withBreak(choosable(span, { look: show, leave: hush, keep: show }));
    });
    host.append(...(names[number] ? [make("div", "row-name", names[number])] : []), make("div", "strip", spans));
  });
  host.append(scale(limit, signed, unit));
}

// --- bars

function drawBars(host, data) {
  const { labels, values } = data;
  const low = Math.min(0, ...values), high = Math.max(0, ...values);
  const place = (value) => (100 * (value - low)) / (high - low || 1);
  const drawn = values.flatMap((value, number) => {
    const bar = make("div", "bar");
    const from = place(Math.min(value ?? 0, 0)), to = place(Math.max(value ?? 0, 0));
    Object.assign(bar.style, { left: `${from}%`, width: `${to - from}%`, background: css(value < 0 ? -0.72 : 0.72) });
    const zero = make("div", "zero");
    zero.style.left = `${place(0)}%`;
    return [
      make("div", "bar-name", labels[number], { title: labels[number] }),
      make("div", "number", format(value, low < 0)), make("div", "track", [bar, zero]),
    ];
  });
  host.append(make("div", "bars", drawn), ...data.notes.map((note) => make("div", "quiet", note)));
}

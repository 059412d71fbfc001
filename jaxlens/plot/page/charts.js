// Coloured text and bar charts.

function drawTokens(host, data) {
  const { tokens, names, values, notes, limit, signed, unit } = data;
  values.forEach((row, rowIndex) => {
    const spans = tokens.flatMap((text, index) => {
      const value = row[index];
      const span = make("span", "token", text, { tabindex: "0" });
      const fraction = value / limit;
      if (value !== null) Object.assign(span.style, { background: css(fraction), color: textColour(fraction) });
      const pairs = (notes[index] ?? []).map(([note, size]) => (size === null ? note : [label(note), format(size)]));
      const lines = [`${label(text)}: ${format(value, signed)} ${value === null ? "" : unit}`, ...pairs];
      const show = (event) => {
        const box = span.getBoundingClientRect();
        showTooltip(lines, event.clientX ?? box.left, event.clientY ?? box.bottom - 12);
      };
      return withBreak(selectable(span, { preview: show, restore: hideTooltip, select: show }));
    });
    if (names[rowIndex]) host.append(make("div", "row-name", names[rowIndex]));
    host.append(make("div", "token-row", spans));
  });
  host.append(scale(limit, signed, unit));
}

// --- bars

function drawBars(host, data) {
  const { labels, values } = data;
  const low = Math.min(0, ...values), high = Math.max(0, ...values);
  const percent = (value) => (100 * (value - low)) / (high - low || 1);
  const rows = values.flatMap((value, index) => {
    const bar = make("div", "bar");
    const from = percent(Math.min(value ?? 0, 0)), to = percent(Math.max(value ?? 0, 0));
    Object.assign(bar.style, { left: `${from}%`, width: `${to - from}%`, background: css(value < 0 ? -0.72 : 0.72) });
    const zero = make("div", "zero");
    zero.style.left = `${percent(0)}%`;
    return [
      make("div", "bar-name", labels[index], { title: labels[index] }),
      make("div", "number", format(value, low < 0)), make("div", "track", [bar, zero]),
    ];
  });
  host.append(make("div", "bars", rows), ...data.notes.map((note) => make("div", "muted", note)));
}

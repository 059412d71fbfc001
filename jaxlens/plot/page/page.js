// Draws every <figure> of the page from the JSON that stands in it, with the function that its data-kind names; and again
// when the colours of the page or its width change. What a reader chose is kept in `state`.

const drawings = {
  heatmap: drawHeatmap, lens: drawLens, attention: drawAttention, tokens: drawTokens, bars: drawBars, lines: drawLines,
};
const figures = Array.from(document.querySelectorAll("figure[data-kind]"), (figure) => ({
  host: figure.querySelector(".drawing"), kind: figure.dataset.kind, state: {}, width: 0,
  data: JSON.parse(figure.querySelector("script[type='application/json']").textContent),
}));

function redraw(figure) {
  figure.width = figure.host.clientWidth;
  hush();
  figure.host.replaceChildren();
  drawings[figure.kind](figure.host, figure.data, figure.state);
}

function redrawAll() {
  colours = readColours();
  figures.forEach(redraw);
}

document.body.append(tip);
document.querySelectorAll("figure details").forEach((details) => { details.open = false; });
redrawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
const watcher = new ResizeObserver(() => figures.filter((one) => one.host.clientWidth !== one.width).forEach(redraw));
figures.forEach((figure) => watcher.observe(figure.host));
addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });

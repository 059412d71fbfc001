// Draws every <figure> of the page from its JSON, with the function for its data-kind. Redraws it when its width or the
// colour scheme changes. `state` keeps the selection of the reader.

const drawFunctions = {
  heatmap: drawHeatmap, lens: drawLens, attention: drawAttention, tokens: drawTokens, bars: drawBars, lines: drawLines,
};
const figures = Array.from(document.querySelectorAll("figure[data-kind]"), (figure) => ({
  host: figure.querySelector(".drawing"), kind: figure.dataset.kind, state: {}, width: 0,
  data: JSON.parse(figure.querySelector("script[type='application/json']").textContent),
}));

function redraw(figure) {
  figure.width = figure.host.clientWidth;
  hideTooltip();
  figure.host.replaceChildren();
  drawFunctions[figure.kind](figure.host, figure.data, figure.state);
}

function redrawAll() {
  colours = readColours();
  figures.forEach(redraw);
}

document.body.append(tooltip);
document.querySelectorAll("figure details").forEach((details) => { details.open = false; });
redrawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
const widthChanged = (figure) => figure.host.clientWidth !== figure.width;
const observer = new ResizeObserver(() => figures.filter(widthChanged).forEach(redraw));
figures.forEach((figure) => observer.observe(figure.host));
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTooltip(); });

// Runs the script of a jaxlens.plot page without a browser. Points at and clicks every element, and prints what the
// page drew as JSON. `Element` implements only what the script uses. An error in the script ends the program.
const fs = require("fs");
const html = fs.readFileSync(process.argv[2], "utf8");
const texts = new Set();
const elements = [];

class Element {
  constructor(tag) {
    Object.assign(this, { tag, children: [], attributes: {}, style: {}, dataset: {}, listeners: {} });
    Object.assign(this, { hidden: false, text: "", painted: 0 });
    this.classes = new Set();
    this.classList = {
      add: (name) => this.classes.add(name), remove: (name) => this.classes.delete(name),
      toggle: (name, on) => (on ? this.classes.add(name) : this.classes.delete(name)),
    };
    elements.push(this);
  }
  set className(name) { this.classes = new Set(name.split(" ")); }
  get textContent() { return this.text + this.children.map((child) => child.textContent ?? child).join(""); }
  set textContent(text) { this.text = String(text); this.children = []; }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  addEventListener(name, listener) { (this.listeners[name] ??= []).push(listener); }
  fire(name, event = {}) {
    for (const listener of this.listeners[name] ?? []) listener({ preventDefault() {}, ...event });
  }
  focus() { this.fire("focus"); }
  click() { this.fire("click"); }
  getBoundingClientRect() { return { left: 0, top: 0, width: 800, height: 300, bottom: 300 }; }
  get clientWidth() { return 800; }
  getContext() {
    return {
      scale() {}, fillRect: (...box) => { this.painted += 1; checkNumbers(box); }, putImageData() {},
      fillText: (text) => texts.add(text), measureText: (text) => ({ width: 6 * text.length }),
      createImageData: (width, height) => ({ data: new Uint8ClampedArray(4 * width * height) }),
    };
  }
}

function checkNumbers(numbers) {
  if (numbers.some((number) => !Number.isFinite(number))) throw new Error(`painted at ${numbers}; expected numbers`);
}

const FIGURE = /<figure data-kind="(\w+)">[^]*?<script type="application\/json">([^]*?)<\/script>/g;
const figures = [...html.matchAll(FIGURE)].map(([, kind, json]) => {
  const host = new Element("div"), source = new Element("script"), figure = new Element("figure");
  source.text = json;
  const querySelector = (selector) => (selector === ".drawing" ? host : source);
  return Object.assign(figure, { host, querySelector, dataset: { kind } });
});
const properties = Object.fromEntries([...html.matchAll(/^ {2}(--[\w-]+): (.*);$/gm)].map((match) => match.slice(1)));
const body = new Element("body");
Object.assign(globalThis, {
  innerWidth: 800, innerHeight: 600, window: { devicePixelRatio: 2 },
  document: {
    body, documentElement: {}, createElement: (tag) => new Element(tag), createElementNS: (_, tag) => new Element(tag),
    querySelectorAll: (selector) => (selector.startsWith("figure[") ? figures : []),
  },
  getComputedStyle: () => ({ getPropertyValue: (name) => properties[name] ?? "" }),
  ResizeObserver: class { observe() {} },
  matchMedia: () => ({ addEventListener() {} }), addEventListener() {},
});
(0, eval)([...html.matchAll(/<script>([^]*?)<\/script>/g)].at(-1)[1]);

const tooltip = body.children.at(-1);
const lineText = (line) => line.children.map((child) => child.textContent).join(" ");

/** Fires an event and records the tooltip. */
function fire(element, name, event) {
  element.fire(name, event);
  if (!tooltip.hidden) texts.add(tooltip.children.map(lineText).join("\n"));
}

const drawn = figures.map((figure) => figure.host.textContent);
const KEYS = ["ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown", "Enter", "x", "Escape"];
for (const element of [...elements]) {
  for (const name of ["mouseenter", "focus", "click", "mouseleave", "blur"]) fire(element, name);
  for (const key of KEYS) fire(element, "keydown", { key });
  if (!element.listeners.mousemove) continue;
  for (let x = 1; x < 800; x += 9) {
    for (let y = 1; y < 300; y += 9) fire(element, "mousemove", { clientX: x, clientY: y });
  }
}
console.log(JSON.stringify({
  drawn, texts: [...texts], painted: elements.reduce((sum, element) => sum + element.painted, 0),
  paths: elements.filter((element) => element.tag === "path").map((element) => element.attributes.d),
}));

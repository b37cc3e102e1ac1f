// Charts as SVG. All text goes in by textContent, and colors come from the style sheet.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 22;

function shape(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

/** A round number that is not below a value, for the top of an axis. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/** Lines of numbers over steps of time; a missing step, or null, is a gap. A number without neighbors is a dash. */
function lines(points, column, x, y) {
  const follows = (before, point) => before && point && point[0] - before[0] === 1 && before[column] !== null
    && point[column] !== null;
  let path = "";
  points.forEach((point, at) => {
    if (point[column] === null) return;
    const place = [x(point[0]), y(point[column]).toFixed(1)];
    if (follows(points[at - 1], point)) path += `L${place[0].toFixed(1)} ${place[1]}`;
    else if (follows(point, points[at + 1])) path += `M${place[0].toFixed(1)} ${place[1]}`;
    else path += `M${(place[0] - 3).toFixed(1)} ${place[1]}h4`;
  });
  return path;
}

export class Chart {
  /** `series` has {column, name, style} for each line; `show` writes a value. */
  constructor(element, series, show, { whole = false, area = false } = {}) {
    Object.assign(this, { element, series, show, whole, area, points: [], now: 0, step: 5, span: 3600, hover: null });
    this.title = element.getAttribute("aria-label");
    element.addEventListener("pointermove", (event) => this.point(event.clientX));
    element.addEventListener("pointerleave", () => this.pick(null));
    element.addEventListener("blur", () => this.pick(null));
    element.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(element);
  }

  update(points, now, step, span) {
    Object.assign(this, { now, step, span });
    this.points = points.filter((point) => point[0] >= now - span / step - 1);
    this.draw();
  }

  x(number) {
    return LEFT + (this.width - LEFT - RIGHT) * (1 - ((this.now - number - 0.5) * this.step) / this.span);
  }

  point(clientX) {
    const at = clientX - this.element.getBoundingClientRect().left;
    let best = null;
    for (const point of this.points) {
      if (best === null || Math.abs(this.x(point[0]) - at) < Math.abs(this.x(best) - at)) best = point[0];
    }
    this.pick(best);
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !this.points.length) return;
    event.preventDefault();
    const at = this.points.findIndex((point) => point[0] === this.hover);
    const next = at < 0 ? this.points.length - 1 : Math.min(this.points.length - 1, Math.max(0, at + move));
    this.pick(this.points[next][0]);
  }

  pick(number) {
    this.hover = number;
    this.draw();
  }

  draw() {
    const { element } = this;
    this.width = element.clientWidth;
    const height = element.clientHeight;
    if (!this.width || !height) return;
    element.replaceChildren();
    const svg = shape(element, "svg", { viewBox: `0 0 ${this.width} ${height}`, "aria-hidden": "true" });
    const values = this.points.flatMap((point) => this.series.map((one) => point[one.column] ?? 0));
    let top = roundUp(Math.max(0, ...values));
    if (this.whole) top = Math.max(top, 4);
    const y = (value) => TOP + (height - TOP - BOTTOM) * (1 - value / top);
    const x = (number) => Math.max(LEFT, this.x(number));
    for (const part of [0, 0.5, 1]) {
      const at = y(top * part);
      shape(svg, "line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: at, y2: at });
      if (this.whole && !Number.isInteger(top * part)) continue;
      shape(svg, "text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, part ? this.show(top * part) : "0");
    }
    for (const part of [0, 0.25, 0.5, 0.75, 1]) {
      const minutes = (this.span / 60) * (1 - part);
      const text = minutes === 0 ? "now" : `−${Number.isInteger(minutes) ? minutes : minutes.toFixed(1)} min`;
      if ((part === 0.25 || part === 0.75) && this.width < 480) continue;
      const anchor = part === 0 ? "start" : part === 1 ? "end" : "middle";
      const at = LEFT + (this.width - LEFT - RIGHT) * part;
      shape(svg, "text", { x: at, y: height - 5, "text-anchor": anchor }, text);
    }
    if (this.area) this.fill(svg, x, y);
    for (const one of this.series) {
      shape(svg, "path", { class: one.style, d: lines(this.points, one.column, x, y) });
    }
    if (!this.points.length) {
      shape(svg, "text", { x: (this.width + LEFT) / 2, y: height / 2 - 4, "text-anchor": "middle" }, "nothing yet");
    }
    this.tip(svg, height);
    const last = this.points.at(-1);
    element.setAttribute("aria-label", last ? `${this.title}, now ${this.words(last)}` : `${this.title}: nothing yet`);
  }

  fill(svg, x, y) {
    let run = [];
    const flush = () => {
      if (run.length > 1) {
        const path = run.map((point) => `${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("L");
        const ends = `L${x(run.at(-1)[0]).toFixed(1)} ${y(0)}L${x(run[0][0]).toFixed(1)} ${y(0)}Z`;
        shape(svg, "path", { class: "area", d: `M${path}${ends}` });
      }
      run = [];
    };
    for (const point of this.points) {
      const value = point[this.series[0].column];
      if (run.length && point[0] - run.at(-1)[0] !== 1) flush();
      run.push([point[0], value]);
    }
    flush();
  }

  words(point) {
    return this.series
      .map((one) => `${one.name} ${point[one.column] === null ? "–" : this.show(point[one.column])}`)
      .join(", ");
  }

  tip(svg, height) {
    const point = this.points.find((one) => one[0] === this.hover);
    if (!point) return;
    const at = Math.max(LEFT, this.x(point[0]));
    shape(svg, "line", { class: "cursor", x1: at, x2: at, y1: TOP, y2: height - BOTTOM });
    const tip = document.createElement("div");
    tip.className = "tip";
    const time = new Date(Date.now() - Math.max(0, this.now - point[0] - 0.5) * this.step * 1000);
    tip.textContent = [time.toLocaleTimeString(), ...this.words(point).split(", ")].join("\n");
    this.element.append(tip);
    const left = at + 10 + tip.offsetWidth > this.width ? at - 10 - tip.offsetWidth : at + 10;
    tip.style.left = `${Math.max(0, left)}px`;
  }
}

/** A small line without axes: requests per second of a model. */
export function spark(element, all, now, step, span) {
  const width = 150, height = 26;
  element.replaceChildren();
  const points = all.filter((point) => point[0] >= now - span / step - 1);
  const top = Math.max(1e-9, ...points.map((point) => point[1]));
  const x = (number) => Math.max(0, width * (1 - ((now - number - 0.5) * step) / span));
  const y = (value) => height - 2 - (height - 4) * (value / top);
  shape(element, "path", { class: "s1", d: lines(points, 1, x, y) });
}

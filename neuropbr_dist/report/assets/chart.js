"use strict";
// Line charts in SVG: {title, unit, log, lines: [{name, style, points: [[step, value|null], …]}]}.

const SVG = "http://www.w3.org/2000/svg";
const BOX = { height: 200, left: 46, right: 10, top: 28, bottom: 22 };

function svg(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function html(name, attributes, parent, text) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

/** Three or four significant digits, without an exponent where a person wouldn't use one. */
function number(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e").replace(".0e", "e");
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

function withUnit(value, unit) {
  return number(value) + (unit === "°" || unit === "%" ? unit : unit ? "\u202f" + unit : "");
}

/** A round distance of which `range` holds about `count`. */
function roundStep(range, count) {
  const rough = range / count, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((m) => m * power).find((step) => step >= rough * 0.999);
}

/** Multiples of `step` from low to high. */
function ticks(low, high, step) {
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Value -> pixel and the ticks, linear or logarithmic. */
function verticalScale(values, log) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log && low > 0 && high > 0) {
    let [a, b] = [Math.log10(low), Math.log10(high)];
    if (b - a < 0.3) { a -= 0.15; b += 0.15; }
    const at = (v) => BOX.height - BOX.bottom - ((Math.log10(v) - a) / (b - a)) * (BOX.height - BOX.bottom - BOX.top);
    let marks = [];
    for (let power = Math.floor(a); power <= Math.ceil(b); power++) for (const m of b - a > 2 ? [1] : [1, 2, 5]) marks.push(m * 10 ** power);
    return { at: (v) => (v > 0 ? at(v) : null), ticks: marks.filter((v) => Math.log10(v) >= a - 1e-9 && Math.log10(v) <= b + 1e-9) };
  }
  if (low >= 0 && low < 0.6 * high) low = 0;
  if (high === low) { const pad = Math.abs(high) * 0.1 || 1; low -= low === 0 ? 0 : pad; high += pad; }
  const step = roundStep(high - low, 3.5);
  low = Math.floor(low / step + 1e-9) * step;
  high = Math.max(high, Math.ceil(high / step - 0.35) * step);
  return {
    at: (v) => BOX.height - BOX.bottom - ((v - low) / (high - low)) * (BOX.height - BOX.bottom - BOX.top),
    ticks: ticks(low, high, step),
  };
}

/** Lines between finite values; a gap where a value is missing. */
function linePath(points, x, y, stepped) {
  let path = "", open = false, last = null;
  for (const [step, value] of points) {
    const at = value === null ? null : y(value);
    if (at === null) { open = false; continue; }
    const [px, py] = [x(step).toFixed(1), at.toFixed(1)];
    path += !open ? `M${px} ${py}` : stepped ? `H${px}V${py}` : `L${px} ${py}`;
    open = true;
    last = px;
  }
  return path;
}

/** Draw one chart into `parent`. `page`: {step, marks, epochOf}; `width` in units of its own, 200 high. */
function drawChart(parent, spec, page, width) {
  const figure = html("figure", { class: "chart" }, parent);
  const title = html("h3", {}, figure, spec.title);
  if (spec.unit) html("small", { class: "quiet" }, title, spec.unit);
  const legend = html("div", { class: "legend" }, figure);
  const root = svg("svg", { viewBox: `0 0 ${width} ${BOX.height}`, role: "img", "aria-label": describe(spec) }, figure);
  const values = spec.lines.flatMap((line) => line.points.map((p) => p[1])).filter((v) => v !== null);
  const most = Math.max(1, page.step);
  const x = (step) => BOX.left + (step / most) * (width - BOX.left - BOX.right);
  const scale = verticalScale(values, spec.log);
  for (const value of scale.ticks) {
    const y = scale.at(value);
    svg("line", { class: "grid", x1: BOX.left, x2: width - BOX.right, y1: y, y2: y }, root);
    svg("text", { x: BOX.left - 6, y: y + 4, "text-anchor": "end" }, root, number(value));
  }
  for (const step of ticks(0, most, Math.max(1, roundStep(most, 4)))) {
    const edge = x(step) > width - 30, text = step.toLocaleString("en");
    const anchor = step === 0 ? "start" : edge ? "end" : "middle";
    svg("text", { x: x(step), y: BOX.height - 6, "text-anchor": anchor }, root, step === 0 ? "step 0" : text);
  }
  drawMarks(root, page.marks, x, width);
  for (const line of spec.lines) {
    svg("path", { class: line.style, d: linePath(line.points, x, scale.at, spec.stepped) }, root);
    const seen = line.points.filter((p) => p[1] !== null && scale.at(p[1]) !== null);
    if (seen.length === 1 || (line.dots && seen.length <= 30))
      for (const [step, value] of seen) svg("circle", { class: line.style, cx: x(step), cy: scale.at(value), r: line.style === "val" ? 2.6 : 1.8 }, root);
  }
  const cross = svg("line", { class: "cross", y1: BOX.top, y2: BOX.height - BOX.bottom, visibility: "hidden" }, root);
  readOut(root, cross, legend, spec, page, { x, most, width });
}

/** Vertical lines where something happened, named in one of two rows where there is room. */
function drawMarks(root, marks, x, width) {
  const rows = [{ y: BOX.top - 6, free: -Infinity }, { y: BOX.top - 17, free: -Infinity }];
  for (const mark of [...marks].sort((a, b) => a.step - b.step)) {
    const at = x(mark.step), half = 2.8 * mark.text.length, middle = Math.min(at, width - half);
    svg("line", { class: "mark", x1: at, x2: at, y1: BOX.top - 4, y2: BOX.height - BOX.bottom }, root);
    const row = rows.find((row) => row.free < middle - half);
    if (!row) continue;
    svg("text", { class: "mark-text", x: middle, y: row.y, "text-anchor": "middle" }, root, mark.text);
    row.free = middle + half + 4;
  }
}

function describe(spec) {
  const last = (line) => line.points.filter((p) => p[1] !== null).at(-1);
  return `${spec.title}: ` + spec.lines.map((line) => `${line.name} ${withUnit(last(line)[1], spec.unit)} at step ${last(line)[0]}`).join(", ");
}

/** The legend holds each line's last value; under the pointer, the values there. */
function readOut(root, cross, legend, spec, page, { x, most, width }) {
  const shown = spec.lines.map((line) => {
    const entry = html("span", {}, legend);
    const sample = svg("svg", { viewBox: "0 0 18 6" }, entry);
    svg("path", { class: line.style, d: "M1 3H17" }, sample);
    html("span", {}, entry, line.name);
    return html("b", {}, entry);
  });
  const place = html("span", {}, legend);
  const write = (step) => {
    let nearest = null;
    spec.lines.forEach((line, i) => {
      const points = line.points.filter((p) => p[1] !== null);
      let point = points.at(-1);
      if (step !== null) point = spec.stepped ? points.filter((p) => p[0] <= step).at(-1) ?? points[0] : points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
      shown[i].textContent = withUnit(point[1], spec.unit);
      if (nearest === null || Math.abs(point[0] - step) < Math.abs(nearest - step)) nearest = point[0];
    });
    place.textContent = step === null ? "" : `step ${nearest.toLocaleString("en")}, epoch ${page.epochOf(nearest)}`;
    cross.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) { cross.setAttribute("x1", x(nearest)); cross.setAttribute("x2", x(nearest)); }
  };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    write(Math.min(most, Math.max(0, ((at - BOX.left) / (width - BOX.left - BOX.right)) * most)));
  });
  root.addEventListener("pointerleave", () => write(null));
  write(null);
}

"use strict";
// Puts the page's data into charts, pictures and the bench.

const DATA = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const MAPS = [["Albedo", [0, 1, 2]], ["Roughness", [3]], ["Metallic", [4]], ["Normal", [5, 6, 7]]];
const TILES = 4; // channels in a row of an embedded picture

function epochOf(step) {
  let found = 0;
  for (const [at, epoch] of DATA.epochs) { if (at > step) break; found = epoch; }
  return found;
}

// -- curves --------------------------------------------------------------------------------

function drawCurves() {
  const page = { step: DATA.step, marks: DATA.marks, epochOf };
  for (const group of DATA.charts) {
    html("h2", {}, element("curves"), group.title);
    // The four maps are columns, their measures rows.
    const maps = group.charts[0].row !== "";
    const rows = [...new Set(group.charts.map((chart) => chart.row))];
    const grid = html("div", { class: maps ? "charts four" : "charts" }, element("curves"));
    for (const row of rows) for (const chart of group.charts) if (chart.row === row) drawChart(grid, chart, page, maps ? 280 : 380);
  }
  if (DATA.worlds.length > 1) {
    const points = [...DATA.worlds, [Math.max(DATA.step, DATA.worlds.at(-1)[0]), DATA.worlds.at(-1)[1]]];
    const grid = html("div", { class: "charts" }, element("worlds"));
    drawChart(grid, { title: "World size", unit: "", log: false, stepped: true, lines: [{ name: "", style: "val", points }] },
      { ...page, marks: DATA.marks.filter((mark) => mark.kind === "gan") }, 380);
  }
}

// -- material ------------------------------------------------------------------------------

/** A data URL of 4 x 2 grey tiles -> {size, channels}. Decoded once. */
const decoded = new Map();
function decode(url, size) {
  if (!decoded.has(url)) decoded.set(url, load(url, size));
  return decoded.get(url);
}
async function load(url, [width, height]) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const channels = Array.from({ length: 8 }, (_, i) => {
    const tile = context.getImageData((i % TILES) * width, Math.floor(i / TILES) * height, width, height).data;
    return Uint8Array.from({ length: width * height }, (_, p) => tile[4 * p]);
  });
  return { size: [width, height], channels };
}

/** One, or three channels into a canvas. */
function paint(canvas, [width, height], colourAt) {
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d"), picture = context.createImageData(width, height);
  for (let p = 0; p < width * height; p++) {
    const [r, g, b] = colourAt(p);
    picture.data.set([r, g, b, 255], 4 * p);
  }
  context.putImageData(picture, 0, 0);
}

function paintMap(canvas, material, channels) {
  const [r, g, b] = channels.length === 3 ? channels.map((i) => material.channels[i]) : Array(3).fill(material.channels[channels[0]]);
  paint(canvas, material.size, (p) => [r[p], g[p], b[p]]);
}

/** Mean absolute difference over the channels; for normals the angle in degrees. */
function errorAt(channels, a, b, p) {
  if (channels[0] !== 5) return channels.reduce((sum, i) => sum + Math.abs(a[i][p] - b[i][p]), 0) / channels.length / 255;
  const unit = (m) => {
    const v = channels.map((i) => m[i][p] / 127.5 - 1), length = Math.hypot(...v);
    return v.map((x) => x / length);
  };
  const [u, v] = [unit(a), unit(b)];
  const half = Math.atan2(Math.hypot(...u.map((x, i) => x - v[i])), Math.hypot(...u.map((x, i) => x + v[i])));
  return (360 / Math.PI) * half;
}

function clamp(value) { return value < 0 ? 0 : value > 1 ? 1 : value; }

function heatColour(share) {
  const i = 3 * Math.round(255 * clamp(share));
  return [DATA.heat[i], DATA.heat[i + 1], DATA.heat[i + 2]];
}

function paintError(canvas, channels, a, b, limit) {
  let sum = 0;
  paint(canvas, a.size, (p) => {
    const error = errorAt(channels, a.channels, b.channels, p);
    sum += error;
    return heatColour(error / limit);
  });
  return sum / (a.size[0] * a.size[1]);
}

function makeCards(hasTruth) {
  element("maps").replaceChildren();
  return MAPS.map(([name, channels]) => {
    const card = html("div", { class: "map" }, element("maps"));
    const title = html("h3", {}, card, name), note = html("small", { class: "quiet" }, title);
    const cell = (caption) => {
      const figure = html("figure", {}, card), canvas = html("canvas", { "aria-label": `${name}, ${caption.toLowerCase()}`, role: "img" }, figure);
      html("figcaption", {}, figure, caption);
      return canvas;
    };
    const canvases = { pred: cell("Predicted") };
    if (hasTruth) { canvases.true = cell("Ground truth"); canvases.error = cell("Error"); }
    return { name, channels, note, ...canvases };
  });
}

function drawScale() {
  element("scale").replaceChildren();
  for (const [most, name, unit] of [[DATA.limits.error, "absolute error", ""], [DATA.limits.angle, "angle", "°"]]) {
    const part = html("div", {}, element("scale"));
    paint(html("canvas", {}, part), [256, 1], (p) => heatColour(p / 255));
    const labels = html("p", {}, part);
    for (const text of ["0" + unit, name, `${most}${unit} and more`]) html("span", {}, labels, text);
  }
}

function showMaterial() {
  const samples = DATA.samples.filter((sample) => sample.looks.length > 0);
  element("material").hidden = samples.length === 0;
  element("no-material").hidden = samples.length > 0;
  if (samples.length === 0) return;
  const lit = hasWebGL();
  element("material").classList.toggle("unlit", !lit);
  const bench = lit && makeBench([element("relit-pred"), element("relit-true")], { light: element("light"), play: element("play") }, DATA.bench);
  const slider = element("epoch");
  let sample, cards, asked = 0;

  async function show() {
    const turn = ++asked, look = sample.looks[Number(slider.value)], size = [sample.width, sample.height];
    element("when").textContent = `Epoch ${look.epoch} · step ${look.step.toLocaleString("en")}${look.best ? " · best" : ""}`;
    slider.setAttribute("aria-valuetext", element("when").textContent);
    const [pred, truth] = await Promise.all([decode(look.maps, size), sample.true ? decode(sample.true, size) : null]);
    if (turn !== asked) return; // the slider has moved on
    if (lit) bench.setMaterials([pred, truth]);
    for (const card of cards) {
      paintMap(card.pred, pred, card.channels);
      if (!truth) continue;
      paintMap(card.true, truth, card.channels);
      const angle = card.name === "Normal";
      const mean = paintError(card.error, card.channels, pred, truth, angle ? DATA.limits.angle : DATA.limits.error);
      card.note.textContent = angle ? `off by ${mean.toFixed(1)}°` : `error ${mean.toFixed(3)}`;
    }
  }
  function choose(index) {
    sample = samples[index];
    [...element("keys").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
    slider.max = sample.looks.length - 1;
    slider.value = sample.looks.length - 1;
    slider.disabled = sample.looks.length < 2;
    element("material").classList.toggle("sharp", Math.max(sample.width, sample.height) < 100);
    element("true-side").hidden = sample.true === null;
    element("views").replaceChildren();
    sample.views.forEach((url, i) => {
      html("img", { src: url, alt: `View ${i + 1}`, width: sample.width, height: sample.height }, element("views"));
    });
    cards = makeCards(sample.true !== null);
    return show();
  }
  samples.forEach((found, i) => html("button", { type: "button" }, element("keys"), found.key).addEventListener("click", () => choose(i)));
  slider.addEventListener("input", show);
  drawScale();
  choose(0);
}

drawCurves();
showMaterial();

"use strict";
// Predicted and true material side by side under one lamp, which circles or follows the pointer.

const TURN = 40; // degrees a second

/** `canvases`: elements; `controls`: {light, play}. Returns {setMaterials}. Needs WebGL. */
function makeBench(canvases, controls, bench) {
  const shaders = canvases.map((canvas) => makeShader(canvas, bench));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let angle = Number(controls.light.value); // exact: the slider rounds it
  let lamp = orbit(angle), playing = !still, shown = [], visible = true, wanted = false;

  function orbit(degrees) {
    const angle = (degrees * Math.PI) / 180;
    return [bench.orbit * Math.cos(angle), bench.orbit * Math.sin(angle), bench.lampHeight];
  }
  function draw() {
    wanted = false;
    shaders.forEach((shader, i) => { if (shown[i]) shader.draw(lamp); });
  }
  function soon() {
    if (!wanted) { wanted = true; requestAnimationFrame(draw); }
  }
  function play(on) {
    playing = on;
    controls.play.textContent = on ? "Pause" : "Play";
    controls.play.setAttribute("aria-pressed", String(on));
    if (on) requestAnimationFrame(turn);
  }
  let before = null;
  function turn(now) {
    if (!playing) { before = null; return; }
    if (before !== null && visible) {
      place((angle + ((now - before) / 1000) * TURN) % 360);
      controls.light.value = angle;
    }
    before = now;
    requestAnimationFrame(turn);
  }
  function place(degrees) {
    angle = degrees;
    lamp = orbit(degrees);
    soon();
  }
  /** The lamp stands where its highlight on flat ground lies under the pointer. */
  function follow(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const reach = (bench.cameraHeight + bench.lampHeight) / bench.cameraHeight;
    lamp = [
      ((event.clientX - box.left) / box.width - 0.5) * reach,
      (0.5 - (event.clientY - box.top) / box.height) * reach,
      bench.lampHeight,
    ];
    if (playing) play(false);
    soon();
  }
  for (const canvas of canvases) {
    canvas.addEventListener("pointermove", follow);
    canvas.addEventListener("pointerdown", follow);
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  }
  controls.light.addEventListener("input", () => { play(false); place(Number(controls.light.value)); });
  controls.play.addEventListener("click", () => play(!playing));
  new IntersectionObserver((entries) => { visible = entries.at(-1).isIntersecting; }).observe(canvases[0]);
  play(playing);
  return {
    /** Materials as `shade.js` has them; null leaves a canvas as it is. */
    setMaterials(materials) {
      shown = materials;
      materials.forEach((material, i) => { if (material) shaders[i].setMaterial(material); });
      soon();
    },
  };
}

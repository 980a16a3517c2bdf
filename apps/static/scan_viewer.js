// The viewer: keeps what is looked at, asks the server for pictures (one request at a time, the last wish wins), shows them.
// Runs as `js_on_load` of a gr.HTML, which gives element, trigger, props, server and watch. Its value is "token|revision".

const q = name => element.querySelector('[data-scan="' + name + '"]');
const root = element.querySelector(".scan-viewer");
const look = { at: [0, 0, 0], window: [0, 1], convention: "radiological", overlay: "labels", opacity: 0.4, hidden: [], outlines: true, zoom: 1 };
let scan = null, token = "", asking = false, wanted = null, tool = "cross", told = null;
const status = (text, alarm = false) => { q("status").textContent = text; q("status").dataset.alarm = alarm ? "yes" : "no"; };
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

const panels = [...element.querySelectorAll('.scan-panel:not([data-plane="surface"])')].map(figure => makePanel(figure, {
  tool: () => tool,
  radius: () => Number(q("radius").value),
  step(plane, by) { this.slice(plane, look.at[AXIS_OF[plane]] + by); },
  slice(plane, index) {
    if (!scan) return;
    look.at[AXIS_OF[plane]] = clamp(index, 0, scan.shape[AXIS_OF[plane]] - 1);
    draw();
  },
  click(plane, x, y) { draw({ plane, x, y }); },
  zoom(factor) { look.zoom = clamp(look.zoom * factor, 1, 16); q("zoom").textContent = look.zoom.toFixed(1) + "x"; draw(); },
  undo() { undo(); },
  async stroke(plane, points) {
    const value = tool === "paint" ? Number(q("value").value) : 0;
    changed(await call("stroke", { view: request(), plane, points, radius: Number(q("radius").value), value }));
  },
}));
const solid = makeSurfaceView(element.querySelector("canvas"), text => { q("solid").textContent = text; });

function request() {
  const sizes = Object.fromEntries(panels.filter(panel => panel.shown()).map(panel => [panel.plane, panel.room()]));
  return { ...look, sizes };
}

async function call(name, asked = null) {
  try {
    const answer = await server["scan_" + name](asked === null ? { token } : { token, asked });
    if (answer && answer.error) { status(answer.error, true); return null; }
    return answer;
  } catch (error) {
    status("The server does not answer. Load the page again.", true);
    return null;
  }
}

async function draw(click = null) {
  if (!scan) return;
  wanted = { click };
  if (asking) return;
  asking = true;
  try {
    while (wanted) {
      const wish = wanted, asked = request();
      wanted = null;
      if (!Object.keys(asked.sizes).length) break;
      if (wish.click) asked.click = wish.click;
      const whose = token, answer = await call("view", asked);
      if (!answer || whose !== token) break;
      if (wish.click) answer.at.forEach((at, axis) => { if (axis !== AXIS_OF[wish.click.plane]) look.at[axis] = at; });
      for (const panel of panels) {
        const axis = AXIS_OF[panel.plane], found = answer.views[panel.plane];
        if (found) panel.show(found, answer.at[axis], scan.shape[axis]);
      }
      status(answer.under);
      root.dataset.drawn = String(Number(root.dataset.drawn || 0) + 1);
    }
  } finally { asking = false; }
  if (wanted && scan) draw(wanted.click);  // another scan was opened while the last one's pictures were on their way
}

async function load() {
  token = String(props.value || "").split("|")[0];
  const keep = scan && scan.token === token ? scan : null;
  const answer = token ? await call("open") : null;
  if (!answer) { scan = null; root.dataset.state = "empty"; panels.forEach(panel => panel.clear()); solid.clear(); return; }
  scan = { ...answer, token };
  if (!keep) {
    Object.assign(look, { at: scan.at, window: [scan.windows[0].low, scan.windows[0].high], hidden: [], zoom: 1 });
    q("zoom").textContent = "1.0x";
  } else if (!keep.paintable.length) look.at = scan.at;
  fill();
  root.dataset.state = scan.overlays.length ? "segmented" : "open";
  draw();
  surface();
}

function fill() {
  const options = (select, pairs) => select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
  options(q("window"), [...scan.windows.map((each, at) => [at, each.name]), ["own", "as set"]]);
  const at = scan.windows.findIndex(each => each.low === look.window[0] && each.high === look.window[1]);
  q("window").value = at < 0 ? "own" : at;
  ramps();
  const names = { labels: "labels", uncertainty: "uncertainty", difference: "difference from the mask" };
  options(q("overlay"), [...scan.overlays.map(name => [name, names[name]]), ["none", "none"]]);
  if (!scan.overlays.includes(look.overlay)) look.overlay = scan.overlays[0] || "none";
  q("overlay").value = look.overlay;
  const paintable = scan.labels.filter(label => scan.paintable.includes(label.value));
  options(q("value"), paintable.map(label => [label.value, label.name]));
  q("brushbar").hidden = !paintable.length;
  q("labels").replaceChildren(...scan.labels.map(label => {
    const line = document.createElement("label"), box = document.createElement("input"), colour = document.createElement("span");
    Object.assign(box, { type: "checkbox", checked: !look.hidden.includes(label.value) });
    box.dataset.label = label.value;
    box.addEventListener("change", () => {
      look.hidden = look.hidden.filter(value => value !== label.value).concat(box.checked ? [] : [label.value]);
      solid.hide(new Set(look.hidden));
      draw();
    });
    colour.className = "scan-swatch";
    colour.style.background = "rgb(" + label.rgb + ")";
    line.append(box, colour, document.createTextNode(label.name));
    return line;
  }));
  const every = [["all", true], ["none", false]].map(([text, on]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.addEventListener("click", () => q("labels").querySelectorAll("input").forEach(box => { if (box.checked !== on) box.click(); }));
    return button;
  });
  if (scan.labels.length > 3) q("labels").prepend(...every);
  q("orientation").textContent = scan.orientation;
  legend();
}

function ramps() {
  const [low, high] = scan.range, span = high - low, [from, to] = look.window;
  Object.assign(q("level"), { min: low, max: high, step: span / 500, value: (from + to) / 2 });
  Object.assign(q("width"), { min: span / 500, max: span * 1.2, step: span / 500, value: to - from });
  q("range").textContent = [from, to].map(value => Number(value.toPrecision(4))).join(" to ");
}

function legend() {
  const swatch = rgb => '<span class="scan-swatch" style="background: rgb(' + rgb + ')"></span>';
  const kinds = {
    difference: () => scan.legend.difference.map(each => "<span>" + swatch(each.rgb) + " " + each.name + "</span>").join(""),
    uncertainty: () => "sure " + scan.legend.uncertainty.map(swatch).join("") + " unsure (entropy 0 to 1)",
  };
  q("legend").innerHTML = kinds[look.overlay] ? kinds[look.overlay]() : "";
}

async function surface() {
  if (!scan || !scan.overlays.includes("labels")) { solid.clear(); q("solid").textContent = "Surfaces are shown once the scan is segmented."; return; }
  const answer = await call("surface");
  if (answer) { solid.hide(new Set(look.hidden)); solid.show(answer); root.dataset.meshes = answer.meshes.length; }
}

function changed(answer) {
  if (!answer) return;
  q("undo").disabled = !answer.undo;
  q("done").textContent = answer.changed + (answer.changed === 1 ? " voxel changed" : " voxels changed");
  draw();
  clearTimeout(told);  // a quick hand paints several strokes before the tables follow
  told = setTimeout(() => { surface(); trigger("corrected"); }, 400);
}

async function undo() {
  const answer = await call("undo");
  if (answer) { changed(answer); q("done").textContent = "taken back"; }
}

function onInput(name, work) { q(name).addEventListener("input", () => { if (scan) { work(q(name)); draw(); } }); }
onInput("window", select => {
  const chosen = scan.windows[select.value];
  if (chosen) { look.window = [chosen.low, chosen.high]; ramps(); }
});
for (const name of ["level", "width"]) onInput(name, () => {
  const level = Number(q("level").value), width = Number(q("width").value);
  look.window = [level - width / 2, level + width / 2];
  q("window").value = "own";
  q("range").textContent = look.window.map(value => Number(value.toPrecision(4))).join(" to ");
});
onInput("convention", select => { look.convention = select.value; });
onInput("overlay", select => { look.overlay = select.value; legend(); });
onInput("opacity", ramp => { look.opacity = ramp.value / 100; });
onInput("outlines", box => { look.outlines = box.checked; });
q("radius").addEventListener("input", () => { q("mm").textContent = q("radius").value + " mm"; });
q("in").addEventListener("click", () => { look.zoom = clamp(look.zoom * 1.5, 1, 16); q("zoom").textContent = look.zoom.toFixed(1) + "x"; draw(); });
q("out").addEventListener("click", () => { look.zoom = clamp(look.zoom / 1.5, 1, 16); q("zoom").textContent = look.zoom.toFixed(1) + "x"; draw(); });
q("undo").addEventListener("click", undo);
q("front").addEventListener("click", () => solid.front());
q("layout").addEventListener("input", () => { q("grid").dataset.layout = q("layout").value; solid.redraw(); draw(); });
element.querySelectorAll('[data-scan="tool"]').forEach(button => button.addEventListener("click", () => {
  tool = button.dataset.tool;
  element.querySelectorAll('[data-scan="tool"]').forEach(each => each.setAttribute("aria-pressed", String(each === button)));
  status({ cross: "Click a slice to set the crosshair.", paint: "Drag over a slice to paint the label.", erase: "Drag over a slice to erase the label." }[tool]);
}));
document.addEventListener("click", async event => {  // slices that want a look are listed elsewhere on the page
  const button = event.target instanceof Element && event.target.closest(".scan-goto");
  if (!button || !scan) return;
  const answer = await call("goto", { at: look.at, axis: button.dataset.axis, index: Number(button.dataset.index) });
  if (!answer) return;
  look.at = answer.at;
  if (scan.overlays.includes("uncertainty")) { look.overlay = q("overlay").value = "uncertainty"; legend(); }
  root.scrollIntoView({ block: "nearest" });
  draw();
});
new ResizeObserver(() => { clearTimeout(root.later); root.later = setTimeout(() => { solid.redraw(); draw(); }, 150); }).observe(root);
watch("value", load);
load();

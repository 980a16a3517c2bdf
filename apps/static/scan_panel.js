// One slice: its picture with crosshair, letters and scale bar, a slider, and what the mouse, wheel, keys and fingers do to it.
// Tells its owner: step(plane, by), slice(plane, index), click(plane, x, y), stroke(plane, points), zoom(factor).

const AXIS_OF = { sagittal: 0, coronal: 1, axial: 2 };

function makePanel(figure, owner) {
  const plane = figure.dataset.plane;
  figure.innerHTML = '<div class="scan-stage" tabindex="0" role="group" aria-label="' + plane + ' slice: arrow keys and page keys ' +
    'change it"><div class="scan-picture" hidden><img alt="" draggable="false"><svg preserveAspectRatio="none" aria-hidden="true">' +
    '<g stroke="#ffd54a" stroke-width="1" fill="none"><line data-line="x"/><line data-line="y"/></g>' +
    '<polyline data-line="stroke" fill="none" stroke="#ffffff" stroke-opacity="0.55" stroke-linecap="round" stroke-linejoin="round"/>' +
    '<g data-line="bar" stroke="#fff" fill="#fff"><line stroke-width="2"/><text stroke="#000" stroke-width="3" paint-order="stroke" ' +
    'font-size="11"></text></g></svg></div>' +
    ["l", "r", "t", "b"].map(side => '<span class="scan-letter ' + side + '"></span>').join("") +
    '</div><figcaption><span class="scan-where"></span><input type="range" min="0" max="0" value="0" aria-label="' + plane +
    ' slice"></figcaption>';
  const find = what => figure.querySelector(what);
  const stage = find(".scan-stage"), box = find(".scan-picture"), image = find("img"), slider = find("input"), svg = find("svg");
  let facts = null, drawn = null;

  function show(found, index, count) {
    facts = found;
    const dense = window.devicePixelRatio || 1, [width, height] = found.size.map(edge => edge / dense);
    box.hidden = false;
    image.src = found.src;
    image.alt = found.caption;
    image.style.width = box.style.width = width + "px";
    image.style.height = box.style.height = height + "px";
    svg.setAttribute("viewBox", "0 0 " + width + " " + height);
    cross(...found.cross);
    ["l", "r", "t", "b"].forEach((side, at) => { find(".scan-letter." + side).textContent = found.letters[at]; });
    const bar = found.bar / found.millimetres * width, text = find("[data-line=bar] text");
    line(find("[data-line=bar] line"), 10, height - 10, 10 + bar, height - 10);
    text.setAttribute("x", 10);
    text.setAttribute("y", height - 15);
    text.textContent = found.bar + " mm";
    find(".scan-where").textContent = found.caption;
    slider.max = count - 1;
    slider.value = index;
    slider.setAttribute("aria-valuetext", found.caption);
    figure.dataset.index = index;
  }

  function cross(x, y) {
    const width = image.clientWidth || parseFloat(image.style.width), height = image.clientHeight || parseFloat(image.style.height);
    line(find("[data-line=x]"), x * width, 0, x * width, height);
    line(find("[data-line=y]"), 0, y * height, width, y * height);
  }

  function line(element, x1, y1, x2, y2) {
    Object.entries({ x1, y1, x2, y2 }).forEach(([name, value]) => element.setAttribute(name, value));
  }

  function place(event) {
    const edge = image.getBoundingClientRect();
    return [(event.clientX - edge.left) / edge.width, (event.clientY - edge.top) / edge.height];
  }

  function trace() {
    const width = image.clientWidth, height = image.clientHeight, path = find("[data-line=stroke]");
    const points = drawn ? drawn.map(([x, y]) => (x * width).toFixed(1) + "," + (y * height).toFixed(1)) : [];
    path.setAttribute("points", points.length === 1 ? points[0] + " " + points[0] : points.join(" "));
    path.setAttribute("stroke-width", facts ? Math.max(2, 2 * owner.radius() / facts.millimetres * width) : 2);
  }

  box.addEventListener("pointerdown", event => {
    if (event.button !== 0 || !facts) return;
    event.preventDefault();
    stage.focus({ preventScroll: true });
    box.setPointerCapture(event.pointerId);
    drawn = [place(event)];
    if (owner.tool() === "cross") { cross(...drawn[0]); owner.click(plane, ...drawn[0]); } else trace();
  });
  box.addEventListener("pointermove", event => {
    if (!drawn) return;
    const here = place(event).map(part => Math.min(1, Math.max(0, part)));
    if (owner.tool() === "cross") { cross(...here); owner.click(plane, ...here); } else if (drawn.length < 3900) { drawn.push(here); trace(); }
  });
  box.addEventListener("pointerup", () => {
    if (drawn && owner.tool() !== "cross") owner.stroke(plane, drawn);
    drawn = null;
    trace();
  });
  box.addEventListener("pointercancel", () => { drawn = null; trace(); });
  let rolled = 0;
  stage.addEventListener("wheel", event => {
    event.preventDefault();
    if (event.ctrlKey) { owner.zoom(event.deltaY < 0 ? 1.25 : 0.8); return; }
    const way = event.deltaMode ? event.deltaY * 40 : event.deltaY;
    rolled = Math.abs(way) >= 60 ? Math.sign(way) * 40 : rolled + way;  // a notch of a wheel is a slice; so are 40 px on a pad
    const steps = Math.trunc(rolled / 40);
    if (steps) { rolled -= steps * 40; owner.step(plane, steps); }
  }, { passive: false });
  stage.addEventListener("keydown", event => {
    const by = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e6, End: 1e6 }[event.key];
    if (by) { event.preventDefault(); owner.step(plane, by); }
    if (event.key === "+" || event.key === "=") owner.zoom(1.25);
    if (event.key === "-") owner.zoom(0.8);
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); owner.undo(); }
  });
  slider.addEventListener("input", () => owner.slice(plane, Number(slider.value)));

  function room() {
    const dense = window.devicePixelRatio || 1;
    return [Math.round(stage.clientWidth * dense), Math.round(stage.clientHeight * dense)];
  }

  function clear() {
    facts = null;
    box.hidden = true;
    find(".scan-where").textContent = "";
    figure.querySelectorAll(".scan-letter").forEach(letter => { letter.textContent = ""; });
  }

  return { plane, show, clear, room, shown: () => stage.clientWidth > 0 };
}

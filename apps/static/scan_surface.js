// Surfaces of structures on a canvas: WebGL, one light at the viewer's eye, turned by dragging or the arrow keys.
// Places are RAS+ mm: x to the patient's right, y to the front, z to the head.

function makeSurfaceView(canvas, tell) {
  const gl = canvas.getContext("webgl", { antialias: true, preserveDrawingBuffer: true });
  const view = { meshes: [], hidden: new Set(), centre: [0, 0, 0], radius: 1, turn: [], near: 1 };
  if (!gl) {
    tell("This browser shows no 3-D (WebGL is off).");
    return { show() {}, hide() {}, clear() {}, redraw() {} };
  }
  gl.getExtension("OES_element_index_uint");
  const program = linked(gl,
    "attribute vec3 point, normal; uniform mat3 turn; uniform vec3 centre; uniform vec2 scale; varying vec3 towards;" +
    "void main() { vec3 seen = turn * (point - centre); towards = turn * normal;" +
    "gl_Position = vec4(seen.x * scale.x, seen.y * scale.y, -seen.z * min(scale.x, scale.y) * 0.3, 1.0); }",
    "precision mediump float; varying vec3 towards; uniform vec3 colour;" +
    "void main() { vec3 n = normalize(towards); float light = abs(n.z);" +
    "float shine = pow(max(0.0, normalize(n + vec3(0.3, 0.5, 0.0)).z), 24.0);" +
    "gl_FragColor = vec4(colour * (0.25 + 0.75 * light) + vec3(0.18) * shine, 1.0); }");
  const at = { point: gl.getAttribLocation(program, "point"), normal: gl.getAttribLocation(program, "normal") };
  const uniform = name => gl.getUniformLocation(program, name);
  front();

  function front() {  // the viewer stands before the patient: x runs to the left of the picture, z up, y to the viewer
    view.turn = [[-1, 0, 0], [0, 0, 1], [0, 1, 0]];
    view.near = 1;
  }

  function buffer(kind, data) {
    const made = gl.createBuffer();
    gl.bindBuffer(kind, made);
    gl.bufferData(kind, data, gl.STATIC_DRAW);
    return made;
  }

  function show(answer) {
    clear();
    view.centre = answer.centre;
    view.radius = Math.max(answer.radius, 1e-3);
    view.meshes = answer.meshes.map(mesh => {
      const faces = new Uint32Array(bytes(mesh.faces).buffer);
      return {
        value: mesh.value, rgb: mesh.rgb.map(part => part / 255), count: faces.length,
        points: buffer(gl.ARRAY_BUFFER, new Float32Array(bytes(mesh.points).buffer)),
        normals: buffer(gl.ARRAY_BUFFER, new Float32Array(bytes(mesh.normals).buffer)),
        faces: buffer(gl.ELEMENT_ARRAY_BUFFER, faces),
      };
    });
    tell(view.meshes.length ? "" : "No structure was found.");
    redraw();
  }

  function clear() {
    for (const mesh of view.meshes) [mesh.points, mesh.normals, mesh.faces].forEach(each => gl.deleteBuffer(each));
    view.meshes = [];
    redraw();
  }

  function redraw() {
    const dense = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(canvas.clientWidth * dense)), height = Math.max(1, Math.round(canvas.clientHeight * dense));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 1);
    gl.enable(gl.DEPTH_TEST);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!view.meshes.length) return;
    gl.useProgram(program);
    const size = view.near * 0.95 / view.radius, side = Math.min(width, height);
    gl.uniform2f(uniform("scale"), size * side / width, size * side / height);
    gl.uniform3fv(uniform("centre"), view.centre);
    const rows = view.turn;
    gl.uniformMatrix3fv(uniform("turn"), false, [0, 1, 2].flatMap(column => rows.map(row => row[column])));
    gl.enableVertexAttribArray(at.point);
    gl.enableVertexAttribArray(at.normal);
    for (const mesh of view.meshes) {
      if (view.hidden.has(mesh.value)) continue;
      gl.uniform3fv(uniform("colour"), mesh.rgb);
      gl.bindBuffer(gl.ARRAY_BUFFER, mesh.points);
      gl.vertexAttribPointer(at.point, 3, gl.FLOAT, false, 0, 0);
      gl.bindBuffer(gl.ARRAY_BUFFER, mesh.normals);
      gl.vertexAttribPointer(at.normal, 3, gl.FLOAT, false, 0, 0);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, mesh.faces);
      gl.drawElements(gl.TRIANGLES, mesh.count, gl.UNSIGNED_INT, 0);
    }
  }

  function rotate(right, down) {  // radians about the picture's upright and level axis
    const [c, s, d, t] = [Math.cos(right), Math.sin(right), Math.cos(down), Math.sin(down)];
    const upright = [[c, 0, s], [0, 1, 0], [-s, 0, c]], level = [[1, 0, 0], [0, d, -t], [0, t, d]];
    view.turn = product(level, product(upright, view.turn));
    redraw();
  }

  let held = null;
  canvas.addEventListener("pointerdown", event => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", event => {
    if (!held) return;
    rotate((event.clientX - held[0]) / 120, (event.clientY - held[1]) / 120);
    held = [event.clientX, event.clientY];
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = null; });
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    view.near = Math.min(8, Math.max(0.4, view.near * Math.exp(-event.deltaY / 500)));
    redraw();
  }, { passive: false });
  canvas.addEventListener("keydown", event => {
    const way = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] }[event.key];
    if (way) { event.preventDefault(); rotate(...way); }
  });
  return { show, clear, redraw, front() { front(); redraw(); }, hide(values) { view.hidden = values; redraw(); } };
}

function linked(gl, points, pixels) {
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, points], [gl.FRAGMENT_SHADER, pixels]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  return program;
}

function product(one, other) {
  return one.map(row => [0, 1, 2].map(column => row[0] * other[0][column] + row[1] * other[1][column] + row[2] * other[2][column]));
}

function bytes(text) {
  const raw = atob(text), found = new Uint8Array(raw.length);
  for (let at = 0; at < raw.length; at++) found[at] = raw.charCodeAt(at);
  return found;
}

// The film with its reading, and the report beside it; a sentence lights its boxes and fixations, and they light it.
// Gradio calls this with `element`, `props` and `watch`. Everything that comes from a film, a model or a visitor is put
// in place as text or as a number, never as HTML.
const SVG = "http://www.w3.org/2000/svg";
// Okabe and Ito's palette; a dash pattern goes with each colour, so that no meaning hangs on colour alone.
const BOX_STYLES = [
  ["#e69f00", ""], ["#009e73", "14 6"], ["#f0e442", "4 5"], ["#cc79a7", "18 5 4 5"], ["#d55e00", "9 9"], ["#0072b2", "2 4"],
];
// Violet to yellow in equal steps of OKLab, lightness rising: keeps its order for the colour-blind and in grey print.
const HEAT = [
  [57, 43, 127], [87, 42, 150], [119, 42, 160], [149, 48, 155], [178, 54, 143], [203, 62, 125], [222, 78, 105],
  [235, 100, 84], [244, 125, 66], [250, 152, 58], [252, 180, 68], [250, 208, 96], [247, 236, 133],
];
const HEAT_SPREAD = 0.04; // standard deviation as a part of the long side: about one degree
const HEAT_CELLS = 96;
const SACCADE_S = 0.03;
const WIDTH = 1000; // of the drawing; its height follows the film

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}
function draw(tag, attributes, parent) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (parent) parent.append(node);
  return node;
}
function named(parent, text) {
  const title = document.createElementNS(SVG, "title");
  title.textContent = text;
  parent.append(title);
}
const percent = (value) => `${Math.round(100 * value)} %`;
const near = (first, second) => first.every((side, index) => Math.abs(side - second[index]) < 1e-3);

// -- the page ---------------------------------------------------------------------------------------------------------
const root = element.querySelector(".film-view");
root.replaceChildren();
const left = make("div", "film-side");
const right = make("div", "text-side");
root.append(left, right);
const title = make("h3", "film-title");
const stage = make("div", "stage");
const picture = make("img");
picture.alt = "";
const heat = make("canvas", "heat");
heat.width = heat.height = HEAT_CELLS;
const layer = draw("svg", { class: "layer", role: "group", "aria-label": "Boxes and fixations on the film" });
stage.append(picture, heat, layer);
const empty = make("p", "empty", "Upload a film or pick an example: it appears here.");
const readings = make("div", "readings");
readings.setAttribute("role", "group");
readings.setAttribute("aria-label", "Drawn readings");
const player = make("div", "player");
const play = make("button", "play", "Play");
play.type = "button";
const time = make("input", "time");
Object.assign(time, { type: "range", min: "0", max: "0", step: "0.01", value: "0" });
time.setAttribute("aria-label", "Time of the reading in seconds");
const clock = make("output", "clock", "");
player.append(play, time, clock);
const switches = make("div", "switches");
const shown = {};
for (const [key, text, on] of [["fixations", "Fixations", true], ["boxes", "Boxes", true], ["heat", "Heat map", false], ["regions", "Regions", false]]) {
  const label = make("label");
  const box = make("input");
  box.type = "checkbox";
  box.checked = on;
  box.dataset.layer = key;
  box.addEventListener("change", () => { shown[key] = box.checked; paint(); });
  shown[key] = on;
  label.append(box, ` ${text}`);
  switches.append(label);
}
const look = make("button", "look", "Look with the pointer");
look.type = "button";
look.setAttribute("aria-pressed", "false");
look.title = "Click where you look, hold for a longer fixation. With the keyboard: arrow keys and Enter.";
switches.append(look);
left.append(title, stage, empty, readings, player, switches);
const status = make("p", "status");
status.setAttribute("role", "status");
const sentences = make("ol", "sentences");
sentences.setAttribute("aria-label", "Report, a sentence each");
const warnings = make("ul", "warnings");
warnings.setAttribute("aria-label", "Warnings");
const findings = make("ul", "findings");
findings.setAttribute("aria-label", "Findings with their probability");
const changed = make("div", "changed");
right.append(status, changed, sentences, warnings, findings);

// -- what is shown ----------------------------------------------------------------------------------------------------
let value = null, key = null, height = WIDTH, boxes = [], fixations = [], total = 0, now = 0;
let pinned = null, passing = null, playing = false, last = 0, reading = 0;
let cursor = [0.5, 0.5], pressedAt = 0;

function lit() {
  return passing || pinned;
}
function onsets() {
  let sum = 0;
  return fixations.map((one) => { const start = sum; sum += one.duration_s + SACCADE_S; return start; });
}
function collect(record) {
  boxes = [];
  const add = (rect, label, sentence, finding) => {
    let box = boxes.find((one) => near(one.rect, rect));
    if (!box) boxes.push((box = { rect, labels: [], sentences: [], findings: [] }));
    if (label && !box.labels.includes(label)) box.labels.push(label);
    if (sentence !== null && !box.sentences.includes(sentence)) box.sentences.push(sentence);
    if (finding !== null && !box.findings.includes(finding)) box.findings.push(finding);
  };
  for (const one of record.findings || []) if (one.box) add(one.box, one.name, null, one.name);
  (record.sentences || []).forEach((sentence, index) => {
    const asserted = sentence.findings.filter((one) => one.status !== "negative").map((one) => one.name);
    sentence.boxes.forEach((rect) => add(rect, asserted.join(", "), index, null));
  });
  for (const rect of value.boxes || []) add(rect, value.phrase || "", null, null);
}
function render() {
  const next = props.value;
  if (!next || !next.film) {
    value = null;
    root.dataset.state = "empty";
    return;
  }
  const isNew = next.key !== key, before = fixations.length;
  value = next;
  key = next.key;
  root.dataset.state = "film";
  const record = value.record || { gaze: { fixations: [] }, sentences: [], findings: [], regions: {}, warnings: [] };
  title.textContent = value.title || "";
  if (picture.src !== value.film) picture.src = value.film;
  picture.alt = `Chest film ${value.name || ""}`;
  height = (WIDTH * value.height) / value.width;
  stage.style.aspectRatio = `${value.width} / ${value.height}`;
  layer.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  if (isNew) { pinned = passing = null; reading = 0; now = 0; playing = false; }
  const drawn = value.readings || [];
  fixations = drawn.length ? drawn[Math.min(reading, drawn.length - 1)].fixations : record.gaze.fixations;
  const starts = onsets();
  total = fixations.length ? starts[starts.length - 1] + fixations[fixations.length - 1].duration_s : 0;
  time.max = total.toFixed(2);
  collect(record);
  if (isNew || (!before && fixations.length)) {
    now = total;
    const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (fixations.length && value.plays && !still) { now = 0; start(); }
  }
  listReadings(drawn);
  listSentences(record);
  listFindings(record);
  listChanges();
  warnings.replaceChildren(...((value.record ? record.warnings : value.warnings) || []).map((text) => make("li", "", text)));
  status.textContent = value.status || "";
  player.hidden = !fixations.length;
  look.hidden = !value.pad;
  paint();
}
function listReadings(drawn) {
  readings.hidden = !drawn.length;
  readings.replaceChildren(...drawn.map((one, index) => {
    const button = make("button", "", `Reading ${index + 1} (${one.log_probability.toFixed(1)} nats)`);
    button.type = "button";
    button.setAttribute("aria-pressed", String(index === reading));
    button.addEventListener("click", () => { reading = index; render(); now = 0; start(); readings.children[index].focus(); });
    return button;
  }));
}
function sync(list, items, build) {
  // Rows that are there keep the focus while the report grows.
  const rows = items.map((item, index) => {
    const mark = JSON.stringify(item), old = list.children[index];
    if (old && old.dataset.mark === mark) return old;
    const row = build(item, index);
    row.dataset.mark = mark;
    return row;
  });
  rows.forEach((row, index) => { if (list.children[index] !== row) list.children[index] ? list.children[index].replaceWith(row) : list.append(row); });
  while (list.children.length > rows.length) list.lastChild.remove();
}
function reacts(node, target) {
  // A finger does not hover: what it touched stays lit, whatever the page moved under it.
  node.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") { passing = target; paint(); } });
  node.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") { passing = null; paint(); } });
  node.addEventListener("focus", () => { passing = target; paint(); });
  node.addEventListener("blur", () => { passing = null; paint(); });
  const toggle = () => { pinned = pinned && same(pinned, target) ? null : target; paint(); };
  node.addEventListener("click", (event) => { event.stopPropagation(); toggle(); });
  if (node instanceof SVGElement) node.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); toggle(); } });
}
const same = (first, second) => first.kind === second.kind && first.index === second.index;
function listSentences(record) {
  const rows = record.sentences.map((one) => [one.text, one.confidence, one.boxes.length, one.fixations.length, one.supported]);
  sync(sentences, value.live ? [...rows, [value.live]] : rows, ([text, confidence, places, looked, supported], index) => {
    const row = make("li");
    if (confidence === undefined) { row.className = "live"; row.textContent = text; return row; }
    const button = make("button", "sentence", text);
    button.type = "button";
    button.dataset.sentence = index;
    const notes = [];
    if (places) notes.push(places === 1 ? "1 box" : `${places} boxes`);
    if (looked) notes.push(looked === 1 ? "1 fixation" : `${looked} fixations`);
    if (confidence !== null) notes.push(`${percent(confidence)} sure of its words`);
    if (supported === false) notes.push("nothing on the film supports this");
    if (notes.length) button.append(make("small", supported === false ? "unsupported" : "", notes.join(" · ")));
    reacts(button, { kind: "sentence", index });
    row.append(button);
    return row;
  });
}
function listFindings(record) {
  sync(findings, record.findings, (one) => {
    const row = make("li"), button = make("button", "finding");
    button.type = "button";
    button.append(make("span", "name", one.name), make("span", "place", [one.severity, one.region].filter(Boolean).join(", ")));
    const bar = make("span", "bar"), fill = make("span", "fill");
    fill.style.width = `${Math.max(0, Math.min(100, 100 * one.probability))}%`;
    bar.append(fill);
    button.append(bar, make("span", "number", percent(one.probability)));
    reacts(button, { kind: "finding", index: one.name });
    row.append(button);
    return row;
  });
}
function listChanges() {
  changed.replaceChildren();
  const what = value.changes;
  changed.hidden = !what;
  if (!what) return;
  changed.append(make("h4", "", "What your gaze changed"));
  const list = make("ul");
  for (const one of what.findings) list.append(make("li", "", `${one.name}: ${percent(one.before)} → ${percent(one.after)}`));
  for (const text of what.only_before) list.append(make("li", "gone", `Not said any more: ${text}`));
  for (const text of what.only_after) list.append(make("li", "came", `Said now: ${text}`));
  for (const one of what.links) if (one.before !== one.after) list.append(make("li", "", `Fixations behind “${one.text}”: ${one.before} → ${one.after}`));
  if (!list.children.length) list.append(make("li", "", "Nothing: the report and the findings are the same."));
  changed.append(list);
}

// -- drawing ----------------------------------------------------------------------------------------------------------
function targets() {
  // What is lit: the sentences, boxes and fixations that belong together.
  const target = lit(), record = (value && value.record) || { sentences: [] };
  const result = { sentences: new Set(), boxes: new Set(), fixations: new Set(), findings: new Set() };
  if (!target) return result;
  const light = (index) => {
    const sentence = record.sentences[index];
    if (!sentence) return;
    result.sentences.add(index);
    sentence.fixations.forEach((one) => result.fixations.add(one));
    boxes.forEach((box, place) => { if (box.sentences.includes(index)) result.boxes.add(place); });
  };
  if (target.kind === "sentence") light(target.index);
  if (target.kind === "box" && boxes[target.index]) {
    result.boxes.add(target.index);
    boxes[target.index].sentences.forEach((one) => result.sentences.add(one));
    boxes[target.index].findings.forEach((one) => result.findings.add(one));
  }
  if (target.kind === "fixation") {
    result.fixations.add(target.index);
    record.sentences.forEach((one, index) => { if (one.fixations.includes(target.index)) result.sentences.add(index); });
  }
  if (target.kind === "finding") {
    result.findings.add(target.index);
    boxes.forEach((box, place) => { if (box.findings.includes(target.index)) result.boxes.add(place); });
    record.sentences.forEach((one, index) => { if (one.findings.some((each) => each.name === target.index)) result.sentences.add(index); });
  }
  return result;
}
let drawnFor = null;
function paint() {
  if (!value) return;
  const on = targets(), starts = onsets();
  root.classList.toggle("has-lit", Boolean(lit()));
  sentences.querySelectorAll("button").forEach((node, index) => {
    node.classList.toggle("lit", on.sentences.has(index));
    node.setAttribute("aria-pressed", String(Boolean(pinned && same(pinned, { kind: "sentence", index }))));
  });
  findings.querySelectorAll("button").forEach((node) => node.classList.toggle("lit", on.findings.has(node.firstChild.textContent)));
  const record = value.record || { regions: {} };
  const sign = JSON.stringify([key, reading, boxes, fixations, shown, own(), look.getAttribute("aria-pressed")]);
  if (sign !== drawnFor) { drawnFor = sign; drawLayer(record); drawHeat(); }
  layer.querySelectorAll("[data-box]").forEach((node) => node.classList.toggle("lit", on.boxes.has(Number(node.dataset.box))));
  layer.querySelectorAll("[data-fixation]").forEach((node) => {
    const index = Number(node.dataset.fixation);
    node.classList.toggle("lit", on.fixations.has(index));
    node.classList.toggle("later", starts[index] > now);
    node.classList.toggle("current", playing && starts[index] <= now && now < starts[index] + fixations[index].duration_s);
  });
  layer.querySelectorAll("[data-saccade]").forEach((node) => node.classList.toggle("later", starts[Number(node.dataset.saccade)] > now));
  time.value = now.toFixed(2);
  time.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${total.toFixed(1)} seconds`);
  clock.textContent = `${now.toFixed(1)} / ${total.toFixed(1)} s`;
  play.textContent = playing ? "Pause" : "Play";
  moveCursor();
}
function drawLayer(record) {
  const focused = layer.contains(document.activeElement) ? document.activeElement : null;
  const kept = focused && [focused.dataset.box, focused.dataset.fixation];
  layer.replaceChildren();
  const at = (x, y) => [x * WIDTH, y * height];
  if (shown.regions) for (const [name, rect] of Object.entries(record.regions || {})) {
    const [x, y] = at(rect[0], rect[1]);
    const node = draw("rect", { class: "region", x, y, width: (rect[2] - rect[0]) * WIDTH, height: (rect[3] - rect[1]) * height }, layer);
    named(node, name);
  }
  if (shown.boxes) boxes.forEach((box, index) => {
    const [x, y] = at(box.rect[0], box.rect[1]), [colour, dash] = BOX_STYLES[index % BOX_STYLES.length];
    const group = draw("g", { class: "box", tabindex: "0", role: "button", "data-box": index, style: `--colour: ${colour}` }, layer);
    const size = { x, y, width: (box.rect[2] - box.rect[0]) * WIDTH, height: (box.rect[3] - box.rect[1]) * height };
    draw("rect", { ...size, class: "edge" }, group);
    draw("rect", { ...size, "stroke-dasharray": dash }, group);
    const label = box.labels.join(", ") || "box";
    group.setAttribute("aria-label", `Box: ${label}`);
    if (box.labels.length) {
      const text = draw("text", { x: x + 8, y: Math.max(26, y - 10) }, group);
      text.textContent = label;
    }
    reacts(group, { kind: "box", index });
  });
  if (shown.fixations) {
    fixations.forEach((one, index) => {
      if (!index) return;
      const [x1, y1] = at(fixations[index - 1].x, fixations[index - 1].y), [x2, y2] = at(one.x, one.y);
      draw("line", { class: "saccade", x1, y1, x2, y2, "data-saccade": index }, layer);
    });
    fixations.forEach((one, index) => {
      const [x, y] = at(one.x, one.y), radius = 12 + 26 * Math.sqrt(Math.min(one.duration_s, 2));
      const group = draw("g", { class: "fixation", tabindex: "0", role: "button", "data-fixation": index }, layer);
      group.setAttribute("aria-label", `Fixation ${index + 1}${one.region ? `, ${one.region}` : ""}, ${one.duration_s.toFixed(2)} seconds`);
      draw("circle", { cx: x, cy: y, r: radius }, group);
      const text = draw("text", { x, y: y + 7, "text-anchor": "middle" }, group);
      text.textContent = index + 1;
      reacts(group, { kind: "fixation", index });
    });
  }
  own().forEach(([x, y, seconds], index) => {
    const [cx, cy] = at(x, y), group = draw("g", { class: "own" }, layer);
    draw("circle", { cx, cy, r: 12 + 26 * Math.sqrt(Math.min(seconds, 2)) }, group);
    const text = draw("text", { x: cx, y: cy + 7, "text-anchor": "middle" }, group);
    text.textContent = index + 1;
  });
  draw("path", { class: "cursor", d: "M-30 0H-8M8 0H30M0-30V-8M0 8V30" }, layer);
  if (kept) { const again = layer.querySelector(kept[0] !== undefined ? `[data-box="${kept[0]}"]` : `[data-fixation="${kept[1]}"]`); if (again) again.focus(); }
}
function drawHeat() {
  const context = heat.getContext("2d");
  const long = Math.max(value.width, value.height);
  heat.width = Math.max(1, Math.round((HEAT_CELLS * value.width) / long));
  heat.height = Math.max(1, Math.round((HEAT_CELLS * value.height) / long));
  heat.hidden = !shown.heat || !fixations.length;
  if (heat.hidden) return;
  const map = new Float64Array(heat.width * heat.height), spread = HEAT_SPREAD * HEAT_CELLS;
  let most = 0;
  for (let row = 0; row < heat.height; row++) for (let column = 0; column < heat.width; column++) {
    let sum = 0;
    for (const one of fixations) {
      const dx = column + 0.5 - one.x * heat.width, dy = row + 0.5 - one.y * heat.height;
      sum += one.duration_s * Math.exp((-0.5 * (dx * dx + dy * dy)) / (spread * spread));
    }
    map[row * heat.width + column] = sum;
    most = Math.max(most, sum);
  }
  const image = context.createImageData(heat.width, heat.height);
  map.forEach((level, index) => {
    const share = level / most, colour = HEAT[Math.min(HEAT.length - 1, Math.floor(share * HEAT.length))];
    image.data.set([...colour, Math.round(255 * 0.65 * Math.min(1, 2 * share))], 4 * index);
  });
  context.putImageData(image, 0, 0);
}

// -- playing ----------------------------------------------------------------------------------------------------------
function start() {
  if (!fixations.length) return;
  if (now >= total) now = 0;
  playing = true;
  last = performance.now();
  requestAnimationFrame(step);
  paint();
}
function step(stamp) {
  if (!playing || !root.isConnected) return;
  now = Math.min(total, now + (stamp - last) / 1000);
  last = stamp;
  if (now >= total) playing = false;
  paint();
  if (playing) requestAnimationFrame(step);
}
play.addEventListener("click", () => { if (playing) { playing = false; paint(); } else start(); });
time.addEventListener("input", () => { playing = false; now = Number(time.value); paint(); });
root.addEventListener("keydown", (event) => { if (event.key === "Escape") { pinned = passing = null; paint(); } });
layer.addEventListener("click", () => { if (look.getAttribute("aria-pressed") !== "true") { pinned = null; paint(); } });

// -- the visitor's own gaze: points are lines of the text box, which is the one place where they stand ----------------
function pad() {
  return document.querySelector("#gaze-points textarea");
}
function own() {
  if (!value || !value.pad || !pad()) return [];
  return pad().value.split("\n").map((line) => line.trim().split(/[\s,;]+/).map(Number)).filter((one) => one.length >= 2 && one.every(Number.isFinite)).map(([x, y, seconds]) => [x, y, seconds || 0.3]);
}
function addPoint(x, y, seconds) {
  const box = pad();
  if (!box) return;
  const line = [x, y, seconds].map((one) => String(Math.round(one * 1000) / 1000)).join(", ");
  const setter = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set;
  setter.call(box, box.value.trim() ? `${box.value.trimEnd()}\n${line}` : line);
  box.dispatchEvent(new Event("input", { bubbles: true }));
  paint();
}
function looking() {
  return value && value.pad && look.getAttribute("aria-pressed") === "true";
}
function place(event) {
  const frame = stage.getBoundingClientRect();
  return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height].map((one) => Math.max(0, Math.min(1, one)));
}
function moveCursor() {
  const node = layer.querySelector(".cursor");
  if (!node) return;
  node.setAttribute("transform", `translate(${cursor[0] * WIDTH} ${cursor[1] * height})`);
  node.classList.toggle("on", Boolean(looking() && document.activeElement === stage));
}
look.addEventListener("click", () => {
  const on = look.getAttribute("aria-pressed") !== "true";
  look.setAttribute("aria-pressed", String(on));
  root.classList.toggle("looking", on);
  if (on) {
    stage.tabIndex = 0;
    stage.setAttribute("role", "application");
    stage.setAttribute("aria-label", "Film: arrow keys move the point of gaze, Enter looks there");
    stage.focus();
  } else {
    for (const name of ["tabindex", "role", "aria-label"]) stage.removeAttribute(name);
  }
  paint();
});
stage.addEventListener("pointerdown", (event) => { if (looking() && event.button === 0) { pressedAt = performance.now(); cursor = place(event); } });
stage.addEventListener("pointerup", (event) => {
  if (!looking() || !pressedAt) return;
  event.preventDefault();
  const seconds = Math.max(0.3, Math.min(5, (performance.now() - pressedAt) / 1000));
  pressedAt = 0;
  addPoint(...cursor, seconds);
});
stage.addEventListener("click", (event) => { if (looking()) event.stopPropagation(); }, true);
stage.addEventListener("focus", moveCursor);
stage.addEventListener("blur", moveCursor);
stage.addEventListener("keydown", (event) => {
  if (!looking() || event.target !== stage) return;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, step = event.shiftKey ? 0.1 : 0.02;
  if (moves[event.key]) {
    event.preventDefault();
    cursor = cursor.map((one, axis) => Math.max(0, Math.min(1, one + step * moves[event.key][axis])));
    moveCursor();
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    addPoint(...cursor, 0.3);
  }
});
document.addEventListener("input", (event) => { if (event.target === pad()) paint(); });

watch("value", render);
render();

// --- sliders -------------------------------------------------------------------------------
/** Ends in whole steps, so that 0 is one of the places where a slider stops. */
function boundsOf({ range }, limit) {
  const most = Math.min(2, limit);
  const [low, high] = (range ?? [-most, most]).map((x) => Math.min(limit, Math.max(-limit, x)));
  const step = high - low > 1 ? 0.05 : 0.01;
  const whole = (x, round) => Number((round(x / step) * step).toFixed(2));
  const bounds = { low: whole(low, Math.ceil), high: whole(high, Math.floor) };
  return { low: Math.min(0, bounds.low), high: Math.max(0, bounds.high), step };
}

const endsOf = ({ prompts }) => prompts && `\u2212 ${prompts.negative}, + ${prompts.positive}`;

function addRow(info, limit) {
  const slider = { name: info.name, ...boundsOf(info, limit) };
  const row = $("row").content.cloneNode(true).firstElementChild;
  const input = row.querySelector("input"), label = row.querySelector("label");
  const { low, high, step } = slider;
  label.textContent = title(info.name);
  label.htmlFor = input.id = `slider-${info.id ?? info.name}`;
  label.title = info.name;
  Object.assign(input, { min: low, max: high, step, value: 0 });
  input.style.setProperty("--zero", -low / (high - low));
  if (endsOf(info)) input.setAttribute("aria-description", input.title = endsOf(info));
  input.addEventListener("input", () => move(info.name, input.valueAsNumber));
  input.addEventListener("dblclick", () => move(info.name, 0));
  const back = row.querySelector("button");
  back.setAttribute("aria-label", `Reset ${title(info.name)}`);
  back.addEventListener("click", () => { input.focus(); move(info.name, 0); });
  sliders.push(Object.assign(slider, { row, input }));
  drawRow(sliders.at(-1));
  return row;
}

function drawRow({ name, low, high, row, input }) {
  const value = values.get(name) ?? 0, at = (x) => (x - low) / (high - low);
  input.value = value;
  input.style.setProperty("--from", at(Math.min(0, value)));
  input.style.setProperty("--to", at(Math.max(0, value)));
  input.setAttribute("aria-valuetext", scaleText(value));
  row.querySelector(".value").textContent = scaleText(value);
  row.classList.toggle("moved", value !== 0);
}

async function loadSliders() {
  clearProblem();
  try {
    const { data, max_strength, finds_faces, words } = await (await call("sliders")).json();
    findsFaces = finds_faces;
    const newest = new Map();
    for (const info of data) {
      if (info.version >= (newest.get(info.name)?.version ?? 0)) newest.set(info.name, info);
    }
    sliders = [];
    mostStrength = max_strength;
    $("words").hidden = !words;
    $("rows").replaceChildren(...[...newest.values()].map((info) => addRow(info, max_strength)));
    if (!sliders.length) $("rows").textContent = "This server has no slider that you may use.";
    $("swept").replaceChildren(...sliders.map(({ name }) => new Option(title(name), name)));
    $("filter-box").hidden = sliders.length <= MANY_SLIDERS;
    $("base").textContent = data[0]?.base ?? "";
    if (!photo) say(HELLO);
    refresh();
  } catch (error) {
    $("rows").textContent = "No sliders yet.";
    fail(error, loadSliders);
  }
}

function filter() {
  const wanted = title($("filter").value.trim().toLowerCase());
  for (const { name, row } of sliders) row.hidden = !title(name).includes(wanted);
  const left = sliders.filter(({ row }) => !row.hidden).length;
  $("filter-count").textContent = wanted ? `${left} of ${sliders.length} sliders` : "";
}

// --- moves, and taking them back -----------------------------------------------------------
let past = [], future = [], gesture = { name: null, at: 0 };

/** Moves one slider. Moves of the same one shortly after each other are undone together. */
function move(name, scale) {
  if ((values.get(name) ?? 0) === scale) return;
  const now = performance.now();
  if (gesture.name !== name || now - gesture.at > GESTURE_MS) remember();
  gesture = { name, at: now };
  scale ? values.set(name, scale) : values.delete(name);
  drawRow(sliders.find((slider) => slider.name === name));
  editSoon();
}

function remember() {
  past.push([...values]);
  future = [];
}

function restore(saved) {
  values.clear();
  for (const [name, scale] of saved) values.set(name, scale);
  gesture = { name: null, at: 0 };
  sliders.forEach(drawRow);
  editSoon();
}

function step(from, to) {
  if (!from.length) return;
  to.push([...values]);
  restore(from.pop());
}

const undo = () => step(past, future);
const redo = () => step(future, past);

function onKey(event) {
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  // Fields for text have an undo of their own.
  if (event.target.matches("input:not([type=range], [type=radio], [type=file])")) return;
  const key = event.key.toLowerCase();
  const act = key === "z" ? (event.shiftKey ? redo : undo) : key === "y" ? redo : null;
  if (!act) return;
  event.preventDefault();
  act();
}

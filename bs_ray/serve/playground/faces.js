// --- faces ---------------------------------------------------------------------------------
let faces = [], looking = null;   // faces: what the server found, as it may be sent back

/** Looks for the faces of a new photo. Where none can be found, the photo is edited without. */
async function findFaces() {
  looking?.abort();
  const mine = (looking = new AbortController()), form = new FormData();
  showFaces([], null);
  if (!findsFaces) return;
  form.append("image", photo.file, photo.name);
  try {
    const response = await call("images/faces", { method: "POST", body: form, signal: mine.signal });
    const found = await response.json();
    showFaces(found.faces, found);
  } catch (error) {
    if (error.status === 401) fail(error, findFaces);
  }
}

/** A choice for each face, for all of them and for the whole photo; and a box for each. */
function showFaces(found, size) {
  faces = found;
  $("faces").hidden = !faces.length;
  const each = faces.map((face, i) => [String(i), `Face ${i + 1}`, face]);
  const all = faces.length > 1 ? [["all", `All ${faces.length} faces`, null]] : [];
  const choices = [["photo", "Whole photo", null], ...all, ...each];
  $("chips").replaceChildren(...(faces.length ? choices : []).map((choice) => chip(choice, size)));
  $("boxes").replaceChildren(...faces.map((face, i) => boxOf(face, i, size)));
  if (faces.length) chooseFace(size.region === "face" ? (all.length ? "all" : "0") : "photo");
  refresh();
}

function chip([value, name, face], size) {
  const label = $("chip").content.cloneNode(true).firstElementChild;
  const radio = label.querySelector("input");
  label.querySelector("b").textContent = name;
  radio.value = value;
  radio.addEventListener("change", () => { drawBoxes(); editSoon(); });
  if (face) thumbnail(label.querySelector("i"), face, size);
  return label;
}

/** The face as the background of an element: a square around its box. */
function thumbnail(element, { box: [left, top, right, bottom] }, { width, height }) {
  const side = 1.3 * Math.max(right - left, bottom - top);
  const share = (middle, whole) => (100 * (middle - side / 2)) / (whole - side || 1);
  element.style.backgroundImage = `url(${photo.url})`;
  element.style.backgroundSize = `${(100 * width) / side}% ${(100 * height) / side}%`;
  element.style.backgroundPosition =
    `${share((left + right) / 2, width)}% ${share((top + bottom) / 2, height)}%`;
}

function boxOf({ box: [left, top, right, bottom] }, i, { width, height }) {
  const element = document.createElement("div");
  const set = (name, part, whole) => { element.style[name] = `${(100 * part) / whole}%`; };
  set("left", left, width);
  set("top", top, height);
  set("width", right - left, width);
  set("height", bottom - top, height);
  element.addEventListener("pointerdown", (event) => event.stopPropagation());
  element.addEventListener("click", () => { chooseFace(String(i)); editSoon(); });
  return element;
}

const where = () => document.querySelector("input[name=where]:checked")?.value ?? null;

function chooseFace(value) {
  const radio = document.querySelector(`input[name=where][value="${value}"]`);
  radio.checked = true;
  radio.closest("label").scrollIntoView({ block: "nearest", inline: "nearest" });
  drawBoxes();
}

function drawBoxes() {
  const chosen = where();
  [...$("boxes").children].forEach((box, i) => {
    box.classList.toggle("chosen", chosen === "all" || chosen === String(i));
  });
}

/** The fields of a request that say what of the photo is edited. */
function region() {
  const chosen = where();
  if (chosen === null) return {};
  if (chosen === "photo") return { region: "photo" };
  return chosen === "all" ? { region: "face" } : { boxes: [faces[Number(chosen)]] };
}

"use strict";
// Names and texts of the server reach the page as textContent or attributes, never as HTML.
const DEBOUNCE_MS = 150, SLOW_MS = 500, GESTURE_MS = 800, LONGEST_WAIT_S = 60, MANY_SLIDERS = 12;
const API = new URL("v1/", location.href).href;
const KEY = "bs_ray.api_key";
const $ = (id) => document.getElementById(id);

let photo = null;             // {file, url, name}
let picture = null;           // the newest edit: {url, meta}; null where it is the photo itself
let sliders = [];             // {name, low, high, step, row, input}, and of words {words}
let mostStrength = 2;         // the server's largest |scale|
let findsFaces = true;        // whether the server does
let retry = () => {};         // what `Try again` and a new key do
const values = new Map();     // name -> scale, those at 0 left out

// --- words ---------------------------------------------------------------------------------
const scaleText = (x) => (x > 0 ? "+" : x < 0 ? "\u2212" : "") + Math.abs(x).toFixed(2);
const title = (name) => name.replace(/[_-]+/g, " ");
const HELLO = "Your photo goes to this server alone.";
const say = (text) => { $("status").textContent = text; };

function clearProblem() {
  $("problem").textContent = "";
}

function fail(error, again) {
  retry = again;
  say("");
  $("again").hidden = !again;
  $("problem").textContent = error.message;
  if (error.status !== 401) return;
  $("key-form").hidden = false;
  $("key").focus();
}

// --- the server ----------------------------------------------------------------------------
class Refusal extends Error {
  constructor(detail, status = 0, retryAfterS = null) {
    super(detail);
    Object.assign(this, { status, retryAfterS });
  }
}

/** Seconds of a Retry-After header, which has seconds or a date; null without one. */
function retryAfter(response) {
  const given = response.headers.get("retry-after");
  if (!given) return null;
  const seconds = /^\d+$/.test(given) ? Number(given) : (Date.parse(given) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}

async function refusalOf(response) {
  const body = await response.json().catch(() => ({}));
  const detail = body.detail ?? `The server answered ${response.status} ${response.statusText}`;
  return new Refusal(String(detail), response.status, retryAfter(response));
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
  });
}

async function send(path, init) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  try {
    return await fetch(API + path, { ...init, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached; check that it runs, then try again");
  }
}

/** A good response. A busy server that says when is asked once more, then. */
async function call(path, init = {}) {
  let response = await send(path, init);
  const waitS = [429, 503].includes(response.status) ? retryAfter(response) : null;
  if (waitS !== null && waitS <= LONGEST_WAIT_S) {
    say(`The server is busy; trying again in ${Math.ceil(waitS)} s`);
    await pause(waitS, init.signal);
    response = await send(path, init);
  }
  if (!response.ok) throw await refusalOf(response);
  return response;
}

/** The server-sent events of a response: [event, data]. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const end = /\r?\n\r?\n/;
  // A picture comes in hundreds of pieces: each is looked at once, with the letters before it.
  for (let pieces = [], last = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (last + value).split(end);
    if (blocks.length > 1) blocks[0] = pieces.splice(0).join("") + blocks[0];
    const begun = blocks.pop();
    pieces.push(begun.slice(0, -3));
    last = begun.slice(-3);
    for (const block of blocks) {
      const lines = block.split(/\r?\n/);
      const of = (field) => lines.filter((line) => line.startsWith(field + ":"))
        .map((line) => line.slice(field.length + 1).replace(/^ /, "")).join("\n");
      yield [of("event"), of("data")];
    }
  }
}

function pictureOf({ b64_json, meta }) {
  const text = atob(b64_json), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return { url: URL.createObjectURL(new Blob([bytes], { type: `image/${outputFormat()}` })), meta };
}

/** The pictures of an edit. `fields` are those of the form beside photo and settings. */
async function ask(fields, signal, onStep) {
  const form = new FormData();
  form.append("image", photo.file, photo.name);
  for (const [name, value] of Object.entries({ ...fields, ...settings(), stream: true })) {
    form.append(name, asField(value));
  }
  const response = await call("images/edits", { method: "POST", body: form, signal });
  const pictures = [];
  for await (const [event, data] of eventsOf(response)) {
    if (data === "[DONE]") return pictures;
    const body = data ? JSON.parse(data) : {};
    if (event === "error") throw new Refusal(String(body.detail), body.status);
    if (event === "image_edit.progress") onStep(body.step, body.steps);
    if (event === "image_edit.completed") pictures[body.index] = pictureOf(body);
  }
  throw new Refusal("The connection ended before the picture was done; try again");
}

// --- what a request says -------------------------------------------------------------------
const said = ({ name, words }) => words ?? { name };
const moved = (without) => sliders.filter(({ name }) => name !== without && values.get(name))
  .map((slider) => ({ ...said(slider), scale: values.get(slider.name) }));
const checked = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const settings = () => ({
  seed: $("seed").valueAsNumber, quality: checked("quality"), output_format: outputFormat(),
  ...region(),
});
/** A JPEG stays one: as a PNG, a large photo would take seconds more. */
const outputFormat = () => (photo?.file.type === "image/jpeg" ? "jpeg" : "png");

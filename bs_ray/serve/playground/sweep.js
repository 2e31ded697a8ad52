// --- sweep ---------------------------------------------------------------------------------
let sweeping = null, urls = [], strip = null;   // strip: {name, context}

/** Five scales from end to end; 0 is the middle one where it lies between the ends. */
function scalesOf({ low, high, step }) {
  const quarters = low < 0 && high > 0
    ? [low, low / 2, 0, high / 2, high]
    : [0, 1, 2, 3, 4].map((i) => low + (i * (high - low)) / 4);
  return quarters.map((x) => Number((Math.round(x / step) * step).toFixed(2)));
}

const contextOf = (name) => JSON.stringify([photo?.url, moved(name), settings()]);

async function drawStrip() {
  if (!photo || !$("seed").reportValidity()) return;
  clearProblem();
  sweeping?.abort();
  const mine = (sweeping = new AbortController());
  const slider = sliders.find(({ name }) => name === $("swept").value);
  const { name } = slider, scales = scalesOf(slider), context = contextOf(name);
  const note = (text) => { $("sweep-note").textContent = text; };
  strip = null;
  $("strip").hidden = false;
  $("strip").replaceChildren(...scales.map(blank));
  note("Drawing");
  try {
    const sweep = { ...said(slider), scales };
    const pictures = await ask({ sliders: moved(name), sweep }, mine.signal,
      (step, steps) => note(`Drawing, step ${step} of ${steps}`));
    urls.forEach(URL.revokeObjectURL);
    urls = pictures.map(({ url }) => url);
    strip = { name, context };
    $("strip").replaceChildren(...urls.map((url, i) => frame(name, scales[i], url)));
    say(`The strip of ${title(name)} is drawn`);
    refresh();
  } catch (error) {
    if (error.name === "AbortError") return;
    $("strip").hidden = true;
    note("");
    fail(error, drawStrip);
  }
}

function blank() {
  const item = document.createElement("li");
  item.append(Object.assign(document.createElement("div"), { className: "blank" }));
  return item;
}

function frame(name, scale, url) {
  const item = document.createElement("li"), button = document.createElement("button");
  const alt = `${title(name)} at ${scaleText(scale)}`;
  const image = Object.assign(new Image(), { src: url, alt });
  const caption = document.createElement("span");
  caption.textContent = scaleText(scale);
  caption.setAttribute("aria-hidden", "true");
  Object.assign(button, { type: "button", title: `Set ${title(name)} to ${scaleText(scale)}` });
  button.dataset.scale = scale;
  button.append(image, caption);
  button.addEventListener("click", () => move(name, scale));
  item.append(button);
  return item;
}

function markStrip() {
  $("sweep").disabled = !photo || !sliders.length;
  if (!strip) return;
  const stale = strip.context !== contextOf(strip.name);
  $("strip").classList.toggle("stale", stale);
  $("sweep-note").textContent = stale ? "Of earlier settings; draw it again"
    : "Choose a picture to set the slider.";
  for (const button of $("strip").querySelectorAll("button")) {
    const here = Number(button.dataset.scale) === (values.get(strip.name) ?? 0);
    button.setAttribute("aria-pressed", !stale && here);
  }
}

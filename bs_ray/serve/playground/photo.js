// --- editing -------------------------------------------------------------------------------
let timer = 0, editing = null;

function editSoon() {
  clearTimeout(timer);
  timer = setTimeout(edit, DEBOUNCE_MS);
  $("stage").setAttribute("aria-busy", true);
  refresh();
}

/** Sends what the sliders say. A newer edit aborts the one in flight. */
async function edit() {
  timer = 0;
  editing?.abort();
  if (!photo || !$("seed").reportValidity()) return;
  clearProblem();
  if (!values.size) return show(null);
  const mine = (editing = new AbortController());
  const shown = setTimeout(() => {
    $("progress").hidden = false;
    say("Drawing");
  }, SLOW_MS);
  try {
    const [newest] = await ask({ sliders: moved() }, mine.signal, (step, steps) => {
      Object.assign($("progress"), { max: steps, value: step });
    });
    show(newest);
  } catch (error) {
    if (error.name !== "AbortError") fail(error, edit);
  } finally {
    clearTimeout(shown);
    if (editing === mine) settle();
  }
}

function settle() {
  $("stage").setAttribute("aria-busy", timer !== 0);
  $("progress").hidden = true;
  $("progress").removeAttribute("value");
}

function show(newest) {
  if (picture) URL.revokeObjectURL(picture.url);
  if (!newest) settle();
  picture = newest;
  $("after").src = newest?.url ?? photo.url;
  $("download").disabled = !newest;
  say(newest ? `Done in ${newest.meta.seconds.toFixed(2)} s` : "Move a slider to change the face");
  const notes = (newest?.meta.notes ?? []).map((text) => {
    return Object.assign(document.createElement("li"), { textContent: text });
  });
  $("notes").replaceChildren(...notes);
  $("notes").hidden = !notes.length;
}

// --- the photo -----------------------------------------------------------------------------
async function take(file) {
  if (!file) return;
  const url = URL.createObjectURL(file);
  const probe = Object.assign(new Image(), { src: url });
  try {
    await probe.decode();
  } catch {
    URL.revokeObjectURL(url);
    return fail(new Error(`${file.name}: got no picture that this browser can show; ` +
      "expected PNG, JPEG or WebP"), null);
  }
  editing?.abort();
  if (photo) URL.revokeObjectURL(photo.url);
  photo = { file, url, name: file.name || "photo.png" };
  $("before").src = url;
  $("stage").style.setProperty("--ratio", probe.naturalWidth / probe.naturalHeight);
  $("drop").hidden = true;
  for (const id of ["stage", "views", "download", "change"]) $(id).hidden = false;
  clearProblem();
  show(null);
  findFaces();
  edit();
  refresh();
}

function takeFrom(transfer) {
  const files = [...transfer.files];
  take(files.find(({ type }) => type.startsWith("image/")) ?? files[0]);
}

function listenForPhotos() {
  $("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
  $("change").addEventListener("click", () => $("file").click());
  addEventListener("paste", (event) => takeFrom(event.clipboardData));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    takeFrom(event.dataTransfer);
  });
}

// --- before and after ----------------------------------------------------------------------
let wipe = 50;

function setWipe(percent) {
  wipe = Math.min(100, Math.max(0, percent));
  $("stage").style.setProperty("--wipe", `${wipe}%`);
  $("divider").setAttribute("aria-valuenow", Math.round(wipe));
  $("divider").setAttribute("aria-valuetext", `${Math.round(wipe)} % before`);
  $("tag-before").classList.toggle("gone", wipe < 15);
  $("tag-after").classList.toggle("gone", wipe > 85);
  for (const radio of document.getElementsByName("view")) {
    radio.checked = Number(radio.value) === wipe;
  }
}

function listenForWipes() {
  const stage = $("stage");
  const follow = (event) => {
    const { left, width } = stage.getBoundingClientRect();
    setWipe((100 * (event.clientX - left)) / width);
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  $("divider").addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 2;
    const to = {
      ArrowLeft: wipe - step, ArrowDown: wipe - step, ArrowRight: wipe + step, ArrowUp: wipe + step,
      PageDown: wipe - 10, PageUp: wipe + 10, Home: 0, End: 100,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    setWipe(to);
  });
  for (const radio of document.getElementsByName("view")) {
    radio.addEventListener("change", () => setWipe(Number(radio.value)));
  }
}

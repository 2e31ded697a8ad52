// --- the page ------------------------------------------------------------------------------
/** What follows from photo, sliders and settings, but for the picture. */
function refresh() {
  $("undo").disabled = !past.length;
  $("redo").disabled = !future.length;
  $("reset").disabled = !values.size;
  markStrip();
  const language = checked("language");
  $("copy").textContent = `Copy as ${language}`;
  $("code").textContent = language === "curl" ? asCurl() : asPython();
}

function useKey(event) {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  clearProblem();
  refresh();
  retry?.();
}

function listen() {
  const on = (id, event, act) => $(id).addEventListener(event, act);
  on("again", "click", () => { clearProblem(); retry(); });
  on("dismiss", "click", clearProblem);
  on("key-form", "submit", useKey);
  on("undo", "click", undo);
  on("redo", "click", redo);
  on("reset", "click", () => { remember(); restore([]); });
  on("filter", "input", filter);
  on("words", "submit", addWords);
  on("seed", "input", () => $("seed").checkValidity() && editSoon());
  on("reseed", "click", () => { $("seed").value = Math.floor(Math.random() * 1e6); editSoon(); });
  on("sweep", "click", drawStrip);
  on("copy", "click", copy);
  on("download", "click", download);
  for (const radio of document.getElementsByName("quality")) radio.onchange = editSoon;
  for (const radio of document.getElementsByName("language")) radio.onchange = refresh;
  addEventListener("keydown", onKey);
}

listen();
listenForPhotos();
listenForWipes();
say(HELLO);
setWipe(50);
refresh();
loadSliders();

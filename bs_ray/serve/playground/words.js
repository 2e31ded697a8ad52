// --- words ---------------------------------------------------------------------------------
/** A slider of the words in the form, at the end of the list, at 1. */
function addWords(event) {
  event.preventDefault();
  const [positive, negative] = ["positive", "negative"].map((id) => $(id).value.trim());
  const name = `${positive} / ${negative}`;
  if (!sliders.some((slider) => slider.name === name)) {
    const info = { name, id: `words-${sliders.length}`, prompts: { positive, negative } };
    if (!sliders.length) $("rows").replaceChildren();
    $("rows").append(addRow(info, mostStrength));
    Object.assign(sliders.at(-1), { words: { positive, negative } });
    $("swept").append(new Option(name, name));
  }
  const { input } = sliders.find((slider) => slider.name === name);
  move(name, Math.min(1, Number(input.max)));
  input.focus();
  refresh();
}

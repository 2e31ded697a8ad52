// --- code ----------------------------------------------------------------------------------
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** What a request says besides sliders, seed and quality, where it is not what it would be. */
function others({ seed, quality, output_format, ...more }) {
  return Object.entries(output_format === "png" ? more : { output_format, ...more });
}

/** A value as a form's field has it. */
const asField = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** The picture's file name: the photo's, and what was done to it. */
function fileName() {
  const stem = (photo?.name ?? "photo.png").replace(/\.[^.]*$/, "");
  const safe = (text) => text.replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 60);
  const plain = safe(stem);
  const sign = (scale) => (scale > 0 ? "+" : "");
  const marks = moved().map(({ name, positive, scale }) =>
    `${name ?? safe(positive)}${sign(scale)}${scale.toFixed(2)}`);
  return [plain, ...marks].join("_").slice(0, 160) + (outputFormat() === "jpeg" ? ".jpg" : ".png");
}

function asCurl() {
  const file = (photo?.name ?? "photo.png").replace(/["\\]/g, "\\$&");
  const { seed, quality } = settings();
  const save = "import base64, json, sys; " +
    'sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))';
  return [
    `curl --fail-with-body -sS ${shell(API + "images/edits")}`,
    ...(sessionStorage.getItem(KEY) ? ['  -H "Authorization: Bearer $BS_RAY_API_KEY"'] : []),
    `  -F ${shell(`image=@"${file}"`)}`,
    `  -F ${shell(`sliders=${JSON.stringify(moved())}`)}`,
    `  -F seed=${seed} -F quality=${quality}`,
    ...others(settings()).map(([name, value]) => `  -F ${shell(`${name}=${asField(value)}`)}`),
    `  | python3 -c ${shell(save)}`,
    `  > ${shell(fileName())}`,
  ].join(" \\\n");
}

function asPython() {
  const { seed, quality } = settings(), text = JSON.stringify;
  const key = sessionStorage.getItem(KEY) ? 'os.environ["BS_RAY_API_KEY"]' : '"none"';
  const members = (one) => Object.entries(one).map(([key, value]) => `${text(key)}: ${text(value)}`);
  const list = moved().map((one) => `{${members(one).join(", ")}}`);
  return [
    "import base64",
    ...(key.startsWith("os") ? ["import os"] : []),
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${text(API)}, api_key=${key})`,
    "reply = client.images.edit(",
    `    image=open(${text(photo?.name ?? "photo.png")}, "rb"),`,
    '    prompt="",',
    "    extra_body={",
    `        "sliders": [${list.join(", ")}],`,
    `        "seed": ${seed},`,
    `        "quality": ${text(quality)},`,
    ...others(settings()).map(([name, value]) => `        ${text(name)}: ${text(asField(value))},`),
    "    },",
    ")",
    `with open(${text(fileName())}, "wb") as file:`,
    "    file.write(base64.b64decode(reply.data[0].b64_json))",
    "",
  ].join("\n");
}

async function copy() {
  const code = $("code").textContent;
  try {
    await navigator.clipboard.writeText(code);
  } catch {
    // Browsers give the clipboard to https and localhost alone; elsewhere a selection does it.
    getSelection().selectAllChildren($("code"));
    document.execCommand("copy");
  }
  say(`Copied as ${checked("language")}`);
}

function download() {
  const link = document.createElement("a");
  Object.assign(link, { href: picture.url, download: fileName() });
  link.click();
}

"""Concept Sliders' own YAML files as training jobs, with notes on what is read otherwise.

There are two kinds of such files: a prompts file (a list of rows), and a config that names one
(`prompts_file`). A key that this reader does not know is an error, as in our own job files. The
reference ignores such keys: its published prompts files write `guidance` for `guidance_scale`, and
so train at a quarter of the guidance that they ask for.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from bs_ray.config import JobError, TrainJob, apply_override, job_of

_ROW = {
    "target",
    "positive",
    "unconditional",
    "neutral",
    "action",
    "guidance_scale",
    "guidance",
    "resolution",
    "dynamic_resolution",
    "batch_size",
    "dynamic_crops",
    "rank",
    "attributes",
}
_TEXTS = ("target", "positive", "unconditional", "neutral")
_CONFIG = {
    "prompts_file": {""},
    "pretrained_model": {"name_or_path", "v2", "v_pred", "clip_skip"},
    "network": {"type", "rank", "alpha", "training_method"},
    "train": {
        "precision",
        "noise_scheduler",
        "iterations",
        "lr",
        "optimizer",
        "lr_scheduler",
        "max_denoising_steps",
        "batch_size",
    },
    "save": {"name", "path", "per_steps", "precision"},
    "logging": {"use_wandb", "verbose", "project_name", "run_name", "interval", "prompts"},
    "other": {"use_xformers"},
}
_TRANSLATED = {
    "base": ("pretrained_model", "name_or_path"),
    "rank": ("network", "rank"),
    "alpha": ("network", "alpha"),
    "steps": ("train", "iterations"),
    "lr": ("train", "lr"),
    "name": ("save", "name"),
    "checkpoint_every": ("save", "per_steps"),
}
"""Our setting -> the section and key of a config that it is read from."""


def is_foreign(path: Path) -> bool:
    """Whether this is a YAML file of Concept Sliders' rather than a job file."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False  # `load` then says what is wrong with it
    if isinstance(found, list):
        return bool(found) and isinstance(found[0], dict) and "target" in found[0]
    return isinstance(found, dict) and "kind" not in found and "prompts_file" in found


def read(path: Path, overrides: list[str] | None = None) -> tuple[TrainJob, list[str]]:
    """The job, and notes on what was corrected, translated or left out. Raises JobError.

    overrides: `key=value` in the names of our own job files; they win over what the file says.
    """
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    notes: list[str] = []
    values: dict[str, Any] = {"kind": "train", "name": "slider"}
    if isinstance(found, list):
        rows, place = found, path
    else:
        values |= _from_config(path, found, notes)
        place = _beside(path, str(found["prompts_file"]))
        rows = yaml.safe_load(place.read_text(encoding="utf-8"))
    values |= _from_row(*_one_row(place, rows, notes), notes)
    for override in overrides or []:
        apply_override(values, override, TrainJob)
    if not values.get("photos") or values.get("algorithm") == "concept_sliders":
        values["losses"] = {"perceptual": 0, "adversarial": 0} | values["losses"]
        notes.append(
            "no photos: guidance loss alone, as in the reference; photos=... adds the perceptual "
            "and adversarial losses, except for algorithm=concept_sliders"
        )
    job = job_of(values, str(path), "train")
    assert isinstance(job, TrainJob)
    return job, notes


def _from_config(path: Path, config: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """What a config file sets, in our names."""
    _only(path, "", config, set(_CONFIG))
    sections = {name: config.get(name) or {} for name in _CONFIG if name != "prompts_file"}
    for name, section in sections.items():
        _only(path, name, section, _CONFIG[name])
    values = {
        ours: sections[section][key]
        for ours, (section, key) in _TRANSLATED.items()
        if key in sections[section]
    }
    network, train = sections["network"], sections["train"]
    if "name" in values:
        values["name"] = str(values["name"]).lower()
    if "base" in values:
        notes.append(f"base {values['base']}: must be a folder here, since nothing is downloaded")
    if "precision" in train:
        notes.append(
            f"train.precision {train['precision']}: kept for the frozen base on GPUs; slider "
            "weights and optimizer are float32, since AdamW in bf16 stalls near 0.06"
        )
    if "training_method" in network:
        notes.append(
            f"network.training_method {network['training_method']}: not read; sliders adapt "
            "attention and feed-forward layers"
        )
    if sections["pretrained_model"].get("v2"):
        raise JobError(f"{path}: pretrained_model: got v2 true; expected an SDXL base: base=FOLDER")
    noted = {*_TRANSLATED.values(), ("train", "precision"), ("network", "training_method")}
    left = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key in section
        if (name, key) not in noted
    ]
    if left:
        notes.append(f"not read: {', '.join(left)} (AdamW, constant rate, fp32 slider files)")
    return values


def _from_row(row: dict[str, Any], words: list[str], notes: list[str]) -> dict[str, Any]:
    """What a row of prompts sets, in our names; its guidance is our eta.

    words: attributes to disentangle. The reference takes one of them at random in each step. Here
    their differences are summed, hence eta is the guidance divided by their number.
    """
    prompts: dict[str, Any] = {
        "target": row["target"],
        "positive": row["positive"],
        "negative": row.get("unconditional") or "",
        "neutral": row.get("neutral") if "neutral" in row else row.get("unconditional") or "",
        "action": row.get("action") or "erase",
        "disentangle": words,
    }
    for key in ("dynamic_resolution", "dynamic_crops"):
        if row.get(key):
            notes.append(f"{key}: not read; all rows have the job's resolution")
    if "guidance" in row and "guidance_scale" not in row:
        notes.append(
            f"guidance: {row['guidance']} is read as guidance_scale; the reference ignores this "
            "spelling and trains at 1"
        )
    eta = float(row.get("guidance_scale", row.get("guidance", 1.0))) / max(len(words), 1)
    if words:
        notes.append(f"attributes {', '.join(words)}: disentangled, losses.eta {eta:g} for each")
    notes.append("both polarities are trained; the reference trains strength +1 alone")
    own: dict[str, Any] = {k: row[k] for k in ("batch_size", "resolution", "rank") if k in row}
    # One worker, as in the reference, unless an override asks for more.
    return {"prompts": prompts, "workers": 1, "losses": {"eta": eta}, **own}


def _one_row(path: Path, rows: Any, notes: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The row to train, and the attributes to disentangle.

    The reference takes one row at random in each step. Rows that differ in their first word alone
    ("male person", "female person") are what its --attributes option writes. Of other rows the
    first is trained.
    """
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise JobError(f"{path}: got no list of prompts; expected rows with target and positive")
    for number, row in enumerate(rows, start=1):
        _only(path, f"row {number}", row, _ROW)
        if missing := {"target", "positive"} - row.keys():
            raise JobError(f"{path}: row {number}: got no {missing.pop()}; expected one")
    given = str(rows[0].get("attributes", "")).split(",")
    if words := [word.strip() for word in given if word.strip()]:
        return rows[0], words
    firsts = [str(row["target"]).split(" ")[0] for row in rows]
    behind = [_behind(row, word) for row, word in zip(rows, firsts, strict=True)]
    if len(set(firsts)) == len(rows) > 1 and behind[0] and all(b == behind[0] for b in behind):
        return behind[0], firsts
    if len(rows) > 1:
        notes.append(
            f"{len(rows)} rows: the first is trained; the others are sliders of their own "
            "(`sliders:` in a job file)"
        )
    return rows[0], []


def _behind(row: dict[str, Any], word: str) -> dict[str, Any] | None:
    """The row without this word in front of its prompts; None where some prompt lacks it."""
    texts = {key: str(row[key]) for key in _TEXTS if row.get(key)}
    if not all(text.startswith(f"{word} ") for text in texts.values()):
        return None
    return row | {key: text.removeprefix(f"{word} ") for key, text in texts.items()}


def _only(path: Path, section: str, found: Any, known: set[str]) -> None:
    if not isinstance(found, dict):
        raise JobError(f"{path}: {section}: got {found!r}; expected a mapping")
    for key in found:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"one of {', '.join(sorted(known))}"
            where = f"{section}: " if section else ""
            raise JobError(f"{path}: {where}got unknown key {key!r}; expected a known one; {hint}")


def _beside(path: Path, name: str) -> Path:
    """A file that a config names: below the working folder, as in the reference, or beside the
    config."""
    for place in (Path(name), path.parent / name, path.parent / Path(name).name):
        if place.is_file():
            return place
    raise JobError(f"{path}: prompts_file: got {name}, which does not exist; expected a YAML file")

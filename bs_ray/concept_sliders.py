"""Concept Sliders' own config and prompts files as our training jobs, with notes on every change.

The reference (Gandikota et al. 2023, trainscripts/textsliders) drops keys that it does not know;
here they are errors. Keys that are known but mean nothing to us are named in a note, so that nothing
is ignored in silence.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bs_ray.config import JobError, TrainJob, apply_override, from_values

_Precision = Literal["fp32", "fp16", "bf16", "float32", "float16", "bfloat16"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Row(_Section):
    """One entry of a prompts file; defaults are the reference's."""

    target: str
    positive: str | None = None
    unconditional: str = ""
    neutral: str | None = None
    action: Literal["erase", "enhance"] = "erase"
    guidance_scale: float | None = None
    guidance: float | None = None
    rank: int | None = None
    resolution: int | None = None
    dynamic_resolution: bool = False
    batch_size: int = 1
    dynamic_crops: bool = False

    @property
    def texts(self) -> list[str]:
        """target, positive, unconditional, neutral, with single spaces."""
        neutral = self.unconditional if self.neutral is None else self.neutral
        four = (self.target, self.positive or self.target, self.unconditional, neutral)
        return [" ".join(text.split()) for text in four]

    @property
    def eta(self) -> float:
        if self.guidance_scale is not None:
            return self.guidance_scale
        return 1.0 if self.guidance is None else self.guidance


class _Root(_Section):
    prompts_file: str
    pretrained_model: dict[str, Any]
    network: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    save: dict[str, Any] | None = None
    logging: dict[str, Any] | None = None
    other: dict[str, Any] | None = None


class _Base(_Section):
    name_or_path: str
    v2: bool = False
    v_pred: bool = False
    clip_skip: int | None = None


class _Network(_Section):
    type: Literal["lierla", "c3lier"] = "lierla"
    rank: int = 4
    alpha: float = 1.0
    training_method: str = "full"


class _Train(_Section):
    precision: _Precision = "bfloat16"
    noise_scheduler: str = "ddim"
    iterations: int = 500
    lr: float = 1e-4
    optimizer: str = "adamw"
    optimizer_args: str | None = ""
    lr_scheduler: str = "constant"
    max_denoising_steps: int = 50


class _Save(_Section):
    name: str = "untitled"
    path: str = "./output"
    per_steps: int = 200
    precision: _Precision = "float32"


class _Logging(_Section):
    use_wandb: bool = False
    verbose: bool = False


class _Other(_Section):
    use_xformers: bool = False


def recognises(path: Path) -> bool:
    """Whether a file is laid out like a config or prompts file of Concept Sliders."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    if isinstance(values, dict):
        return "kind" not in values and ("prompts_file" in values or "pretrained_model" in values)
    return isinstance(values, list) and bool(values) and all(isinstance(v, dict) for v in values)


def load(path: Path, overrides: list[str] | None = None) -> tuple[TrainJob, list[str]]:
    """A config or prompts file as a training job, and notes on what was corrected or ignored.

    Overrides are our own `key=value`, applied to the job, besides the reference's options
    `prompts_file=FILE` and `attributes=male,female`. Raises JobError.
    """
    overrides = list(overrides or [])
    flags = {o.partition("=")[0]: o.partition("=")[2] for o in overrides if o.startswith(_FLAGS)}
    overrides = [o for o in overrides if not o.startswith(_FLAGS)]
    given, notes = _yaml(path), []
    if isinstance(given, dict):
        root = _parse(_Root, given, f"{path}: ")
        values, notes = _settings(root, path)
        prompts_file = _find(flags.get("prompts_file", root.prompts_file), path)
        rows = _rows(_yaml(prompts_file), prompts_file)
    else:
        values = {"name": _name(path.stem)}
        notes = ["a prompts file alone: steps, rank, lr and the rest are bs-ray's own defaults"]
        rows = _rows(given, path)
    if "attributes" in flags:
        rows = _with_attributes(rows, [word.strip() for word in flags["attributes"].split(",")])
    more, said = _prompts(rows)
    values, notes = {"kind": "train"} | values | more, notes + said
    for override in overrides:
        apply_override(values, override)
    notes += _fit(values)
    job = from_values(values, path)
    assert isinstance(job, TrainJob)
    return job, notes


_FLAGS = ("prompts_file=", "attributes=")


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError(f"{path}: got a file that is not YAML; expected one. {error}") from None


_S = TypeVar("_S", bound=_Section)


def _parse(kind: type[_S], values: Any, place: str) -> _S:
    """Check one section. Raises JobError that names every unknown or wrong key."""
    try:
        return kind.model_validate(values or {})
    except ValidationError as error:
        lines = [_explain(finding, kind) for finding in error.errors()]
        raise JobError(f"{place}{'; '.join(lines)}") from None


def _explain(finding: Any, kind: type[_Section]) -> str:
    key = ".".join(map(str, finding["loc"]))
    if finding["type"] == "missing":
        return f"{key}: got nothing; expected a value (this key is required)"
    if finding["type"] != "extra_forbidden":
        return f"{key}: got {finding['input']!r}; {finding['msg'][0].lower()}{finding['msg'][1:]}"
    known = list(kind.model_fields)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"one of {', '.join(known)}"
    return f"got unknown key {key!r}; expected a key of Concept Sliders; {hint}"


def _find(name: str, config: Path) -> Path:
    """The prompts file: as written (the reference runs in its own clone), or beside the config."""
    places = [Path(name), config.parent / name, config.parent / Path(name).name]
    for place in places:
        if place.is_file():
            return place
    raise JobError(
        f"{config}: got prompts_file {name!r}, which is neither at {' nor at '.join(map(str, places))};"
        " expected a prompts file: prompts_file=FILE"
    )


def _rows(values: Any, path: Path) -> list[_Row]:
    if not isinstance(values, list) or not values:
        got = "an empty list" if values == [] else type(values).__name__
        raise JobError(f"{path}: got {got}; expected a list of prompts (target, positive, ..)")
    return [_parse(_Row, row, f"{path}: row {n}: ") for n, row in enumerate(values, 1)]


def _with_attributes(rows: list[_Row], words: list[str]) -> list[_Row]:
    """The reference's --attributes: every row once per word, put in front of its four prompts."""
    keys = ("target", "positive", "unconditional", "neutral")
    return [
        row.model_copy(update={k: f"{w} {t}" for k, t in zip(keys, row.texts, strict=True)})
        for row in rows
        for w in words
    ]


# --- config -> settings ---------------------------------------------------------------------------
def _settings(root: _Root, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Everything but the prompts."""
    base = _parse(_Base, root.pretrained_model, f"{path}: pretrained_model: ")
    network = _parse(_Network, root.network, f"{path}: network: ")
    train = _parse(_Train, root.train, f"{path}: train: ")
    save = _parse(_Save, root.save, f"{path}: save: ")
    logging = _parse(_Logging, root.logging, f"{path}: logging: ")
    other = _parse(_Other, root.other, f"{path}: other: ")
    if base.v2:
        raise JobError(f"{path}: got pretrained_model.v2 true; expected an SDXL base: base=FOLDER")
    values = {
        "name": _name(save.name),
        "base": base.name_or_path,
        "rank": network.rank,
        "alpha": network.alpha,
        "steps": train.iterations,
        "lr": train.lr,
        "checkpoint_every": save.per_steps,
    }
    notes = [
        f"train.iterations {train.iterations}: steps",
        f"save.per_steps {save.per_steps}: checkpoint_every",
        f"network.type {network.type} and training_method {network.training_method}: ignored; the "
        "layers are those that bs-ray adapts in the base's family, for SDXL attention (cross-"
        "attention too) and feed-forward",
    ]
    if logging.use_wandb:
        values["tracking"] = {"wandb": values["name"]}
        notes.append(f"logging.use_wandb: tracking.wandb {values['name']}")
    return values, notes + _ignored(base, train, save, logging, other)


def _ignored(
    base: _Base, train: _Train, save: _Save, logging: _Logging, other: _Other
) -> list[str]:
    """Notes on settings that change nothing here."""
    fp32 = ("fp32", "float32")
    found = {
        f"pretrained_model.clip_skip {base.clip_skip}: ignored; prompts are encoded as the base's "
        "own pipeline does": base.clip_skip is not None,
        "pretrained_model.v_pred: ignored; the base's scheduler_config.json says what it predicts":
            base.v_pred,
        f"train.precision {train.precision}: ignored; slider weights are kept in fp32, for in less "
        "AdamW's small steps are rounded away": train.precision not in fp32,
        f"train.noise_scheduler {train.noise_scheduler} and max_denoising_steps "
        f"{train.max_denoising_steps}: ignored; noisy latents are noised photos, or come from the "
        "base's own runs by DDIM": True,
        f"train.optimizer {train.optimizer}: read as AdamW": train.optimizer.lower() != "adamw",
        f"train.optimizer_args {train.optimizer_args}: ignored": bool(train.optimizer_args),
        f"train.lr_scheduler {train.lr_scheduler}: ignored; the rate is constant":
            train.lr_scheduler != "constant",
        f"save.path {save.path}: ignored; registry= and runs= say where": True,
        f"save.precision {save.precision}: ignored; slider files are fp32":
            save.precision not in fp32,
        "logging.verbose: ignored": logging.verbose,
        "other.use_xformers: ignored; torch's own attention is used": other.use_xformers,
    }  # fmt: skip
    return [note for note, holds in found.items() if holds]


def _name(text: str) -> str:
    """A run's name of the letters that one may have."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:64] or "slider"


# --- prompts -> settings --------------------------------------------------------------------------
def _prompts(rows: list[_Row]) -> tuple[dict[str, Any], list[str]]:
    """The rows as one slider's prompts, with the settings that stand beside them.

    The reference draws one row a step. Rows that differ in their first words only ("male person",
    "female person") are Eq 8's attributes; of other rows the first counts.
    """
    first, notes = rows[0], []
    words, texts = _attributes(rows), first.texts
    eta = first.eta
    if words:
        texts = [text.removeprefix(words[0]).strip() for text in texts]
        eta = first.eta / len(words)
        notes.append(
            f"{len(words)} rows that differ in their first words: prompts.disentangle "
            f"[{', '.join(words)}]. The reference draws one of them a step; here their differences "
            f"are summed, so losses.eta is guidance / {len(words)}. A row of a step asks the base "
            f"{2 * len(words) + 1} times; teacher.mode=cached does so once for all steps"
        )
    elif len(rows) > 1:
        others = ", ".join(repr(row.texts[0]) for row in rows[1:4])
        notes.append(
            f"{len(rows)} rows: the first ({texts[0]!r}) is taken, and {others}"
            f"{' ..' if len(rows) > 4 else ''} left out; the reference draws one row a step. Train "
            "the others as sliders of their own (sliders: in a job file)"
        )
    target, positive, negative, neutral = texts
    values = {
        "prompts": {
            "target": target, "positive": positive, "negative": negative, "neutral": neutral,
            "action": first.action, "disentangle": words,
        },
        "losses": {"eta": eta},
        "batch_size": first.batch_size,
        "workers": 1,
    }  # fmt: skip
    if first.resolution is not None:
        values["resolution"] = first.resolution
    return values, notes + _row_notes(first)


def _attributes(rows: list[_Row]) -> list[str]:
    """What stands in front of otherwise equal rows; [] unless there are several such rows."""
    same = {row.model_copy(update=dict.fromkeys(_TEXT_KEYS, "")) for row in rows}
    targets = [row.texts[0].split() for row in rows]
    shared = 0  # words at the end that all targets have, with at least one before them
    while shared < min(map(len, targets)) - 1 and len({t[-shared - 1] for t in targets}) == 1:
        shared += 1
    if len(rows) < 2 or len(same) > 1 or not shared:
        return []
    words = [" ".join(target[:-shared]) for target in targets]
    if len(set(words)) < len(words):
        return []
    for row, word in zip(rows, words, strict=True):
        if not all(text == word or text.startswith(f"{word} ") for text in row.texts):
            return []
    rest = {
        tuple(text.removeprefix(word).strip() for text in row.texts)
        for row, word in zip(rows, words, strict=True)
    }
    return words if len(rest) == 1 else []


_TEXT_KEYS = ("target", "positive", "unconditional", "neutral")


def _row_notes(row: _Row) -> list[str]:
    found = {
        f"guidance: {row.guidance:g} is read as guidance_scale {row.guidance:g} (the reference "
        "ignores this spelling and trains at 1)"
        if row.guidance is not None and row.guidance_scale is None
        else "": True,
        f"guidance: {row.guidance} is ignored beside guidance_scale {row.guidance_scale}":
            row.guidance is not None and row.guidance_scale is not None,
        "guidance_scale: left out, so losses.eta is the reference's 1":
            row.guidance is None and row.guidance_scale is None,
        "action: left out, so the reference's erase": "action" not in row.model_fields_set,
        "neutral: left out, so the unconditional prompt, as in the reference": row.neutral is None,
        "positive: left out, so the target, as in the reference": row.positive is None,
        f"rank {row.rank} among the prompts: ignored, as in the reference; set rank={row.rank}":
            row.rank is not None,
        "dynamic_resolution: ignored; pictures are of one size": row.dynamic_resolution,
        "dynamic_crops: ignored; pictures are not cropped": row.dynamic_crops,
        "resolution: left out, so the base's own size": row.resolution is None,
        "workers: 1, as in the reference; more need a batch_size that they divide": True,
    }  # fmt: skip
    return [note for note, holds in found.items() if note and holds]


def _fit(values: dict[str, Any]) -> list[str]:
    """Make the finished settings go together, where the user did not say; notes on it."""
    notes = []
    losses = values["losses"]
    without = "no photos" if not values.get("photos") else ""
    if values.get("algorithm") == "concept_sliders":
        without = "algorithm concept_sliders"
    if without and isinstance(losses, dict) and not {"perceptual", "adversarial"} <= losses.keys():
        losses.setdefault("perceptual", 0.0)
        losses.setdefault("adversarial", 0.0)
        notes.append(
            f"{without}: losses.perceptual and losses.adversarial are 0, as in the reference; "
            "photos=PREFIX brings the paper's image terms in"
        )
    base = str(values.get("base", "tiny"))
    if base not in ("tiny", "tiny-flow") and not Path(base).is_dir():
        notes.append(
            f"base {base}: no folder here, and nothing is downloaded: "
            f"hf download {base} --local-dir FOLDER, then base=FOLDER"
        )
    return notes

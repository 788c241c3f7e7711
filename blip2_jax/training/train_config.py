"""The configuration of a training run: every key, its default and what it means.

An experiment is one file `configs/NAME.py` with a `get_config()` that starts from
`default_config(task)` and changes what differs. The result is locked: a key that
is not named here is an error, here and on the command line
(`--config.optimizer.learning_rate=3e-4`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.data.data_config import DataConfig
from blip2_jax.data.sources.registry import ALIASES
from blip2_jax.nn.precision import PRECISIONS

TASKS = ("stage1", "stage2", "contrast", "language_model")
OPTIMIZERS = ("adamw", "muon")

# Keys whose change leaves the sequence of losses as it was, up to rounding: a run
# may be continued with other values. Every other key is part of what the run *is*.
# `steps` is not here: the schedule depends on it.
CHANGEABLE = (
    "frozen_sources",  # files may move; their digests must be the same
    "log_every",
    "mesh",
    "model.attention",
    "data.workers",
    "data.prefetch",
    "data.max_broken_share",
    "checkpoint",
    "evaluation",
    "logging",
    "compilation_cache",
    "replay",
)

_FROZEN = {
    "stage1": ("^visual_encoder/",),
    "stage2": ("^visual_encoder/", "^language_model/"),
    "contrast": (),
    "language_model": (),
}
# The text branch of the Q-Former has no work in stage 2; it travels along, so that
# a later VQA fine-tune finds it as stage 1 left it.
_TEXT_BRANCH = (
    "^qformer/embeddings/(word|position)$",
    "^qformer/layer_[0-9]+/text_mlp(_norm)?/",
    "^qformer/head/",
    "^(vision_projection|text_projection|itm_head)/",
    "^temperature$",
)


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one sentence for the user."""


def default_config(task: str = "stage1") -> ConfigDict:
    """Every key with its default: the paper's values where the paper gives one.

    Args:
      task: one of `TASKS`; it decides what is frozen, carried and how captions are
        written. Sources of data and of frozen weights are left empty.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    config = ConfigDict()
    config.task = task
    config.seed = 0
    config.steps = 250_000 if task == "stage1" else 80_000
    config.batch_size = 1680  # of all devices together
    config.precision = "bfloat16"  # of matmul inputs; masters are float32 always

    config.model = _model()
    config.init = _init()
    # Weights of the towers: frozen or, where `frozen` leaves them out, to begin from.
    # An image encoder's positions are brought to the image size. A file or folder of
    # the tower's own project (EVA-CLIP, CLIP, OPT, T5; docs/conversion.md), one that
    # launch/convert.py wrote, the directory of the run that made it, "shapes:vision",
    # "shapes:opt", "shapes:t5" (shipped; "shapes:opt_small" and so on too), or "random"
    # (for tests).
    config.frozen_sources = ConfigDict({"vision": "", "language_model": ""})
    # Regexes over parameter paths. Frozen: used, not trained, not checkpointed.
    # Carried: not used by this task, checkpointed for a later one.
    config.frozen = _FROZEN[task]
    config.carried = _TEXT_BRANCH if task == "stage2" else ()
    # Fields of the task's options (`Stage1Options`, `Stage2Options`, ...).
    config.objective = ConfigDict()
    config.optimizer = _optimizer(task)

    config.data = _data(task)
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: the rest
    config.checkpoint = _checkpoint()
    config.evaluation = _evaluation()
    config.log_every = 50
    config.logging = ConfigDict(
        {"wandb": False, "wandb_project": "blip2_jax", "negatives": False}
    )
    config.replay = ""  # a negatives.jsonl: hard negatives to use in place of draws
    config.compilation_cache = ""  # a directory: compiled programs outlive the run
    return config.lock()


def _model() -> ConfigDict:
    return ConfigDict(
        {
            "preset": "pretrain",
            # Sizes that differ from the preset, e.g. {"qformer": {"depth": 4}}.
            "overrides": {},
            "scan": True,  # towers as one scanned block: small programs
            # What the backward pass computes again of a block: "none", "full", or
            # "dots": all but products of rows with weights (docs/training.md).
            "remat": "none",
            # "cudnn": by cuDNN's kernel where it can (docs/training.md); "auto": on a
            # GPU that has it, where nothing is masked (image towers).
            "attention": "auto",
            # Stage 2: the Q-Former reads the question beside its queries (the paper's
            # VQA fine-tune); its text branch is then trained, from stage 1's.
            "question_in_qformer": False,
        }
    )


def _init() -> ConfigDict:
    """Where a new run starts from: nothing, unless one of these is set."""
    return ConfigDict(
        {
            "from_run": "",  # a run directory of this package, e.g. of stage 1
            "which": "last",  # "last", "best" or a step of that run
            "from_weights": (),  # files or folders: ours, BERT, LAVIS, Hugging Face
        }
    )


def _optimizer(task: str) -> ConfigDict:
    return ConfigDict(
        {
            "name": "adamw",  # the paper's; "muon" for matrices learns in fewer steps
            "learning_rate": 1e-4,
            "warmup_steps": 2000,
            "warmup_start_learning_rate": 1e-6,
            "final_learning_rate": 5e-5 if task == "stage2" else 1e-5,
            "weight_decay": 0.05,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            "clip": 0.0,  # of the global norm; 0: none, as in the original
            "original_decay": False,  # the original decays the temperature too
            "layer_decay": 1.0,  # per block of an image encoder that is trained
            "rate_factors": (),  # pairs (pattern of paths, factor of their rate)
            # Chunks that a step takes its batch in, for less memory. Losses are means
            # over the whole batch all the same, and ITC contrasts all of it.
            "accumulate": 1,
        }
    )


def _data(task: str) -> ConfigDict:
    """The fields of `DataConfig`, which says what they mean."""
    fields = ConfigDict(dataclasses.asdict(DataConfig(train=())))
    fields.workers = 0 if task == "language_model" else 8
    return fields


def _checkpoint() -> ConfigDict:
    return ConfigDict({"every": 1000, "keep": 2})  # and the best by evaluation


def _evaluation() -> ConfigDict:
    return ConfigDict(
        {
            "every": 0,  # 0: never
            "sources": (),  # source specs, as data.train
            "metric": "",  # what "best" means; "": the task's own
            "mode": "max",
            "batch_size": 64,
            "max_examples": 0,  # 0: all
            "max_new_tokens": 30,
            "num_beams": 1,
            "rerank": 32,  # candidates that ITM re-ranks (stage 1)
        }
    )


def validate(config: ConfigDict) -> None:
    """Check the values that no later part of the set-up checks by itself.

    Raises:
      ConfigError: with one sentence that names the key, its value and what to do.
    """
    _one_of("task", config.task, TASKS)
    _one_of("precision", config.precision, PRECISIONS)
    _one_of("optimizer.name", config.optimizer.name, OPTIMIZERS)
    _one_of("evaluation.mode", config.evaluation.mode, ("max", "min"))
    for key in (
        "steps",
        "batch_size",
        "log_every",
        "checkpoint.every",
        "checkpoint.keep",
        "optimizer.accumulate",
        "data.max_text_length",
    ):
        if (value := lookup(config, key)) < 1:
            raise ConfigError(f"config.{key} is {value}; it must be 1 or more")
    for key in ("data.workers", "evaluation.every", "optimizer.warmup_steps"):
        if (value := lookup(config, key)) < 0:
            raise ConfigError(f"config.{key} is {value}; it must not be negative")
    if config.model.question_in_qformer and config.task != "stage2":
        raise ConfigError(
            "config.model.question_in_qformer is set, but the task is "
            f"{config.task!r}; it belongs to 'stage2'"
        )
    if not config.data.train:
        raise ConfigError("config.data.train names no source of data")
    if config.logging.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("config.logging.wandb is set: pip install wandb")
    if config.evaluation.every and not config.evaluation.sources:
        raise ConfigError(
            "config.evaluation.every is set but config.evaluation.sources is empty"
        )


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"config.{key} is {value!r}; it must be one of {', '.join(allowed)}"
        )


def best_metric(config: ConfigDict) -> str:
    """Return the name of the score that selects the best checkpoint.

    `config.evaluation.metric` if set, else the default of the task: mean recall for
    stage 1 (of the re-ranked lists if there are any), CIDEr for stage 2.
    """
    if config.evaluation.metric:
        return config.evaluation.metric
    if config.task == "stage1":
        return "itm_r_mean" if config.evaluation.rerank else "itc_r_mean"
    return "cider"


def lookup(config: ConfigDict, key: str) -> Any:
    """The value under a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """The configuration as nested dicts and lists that JSON can hold."""
    return json.loads(json.dumps(config.to_dict()))


def from_plain(plain: dict[str, Any]) -> ConfigDict:
    """The inverse of `to_plain`: lists become tuples, as in configuration files."""
    return ConfigDict(_tuples(plain)).lock()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def canonical(config: ConfigDict) -> ConfigDict:
    """A configuration as its stored form reads back: a locked copy."""
    return from_plain(to_plain(config))


def read_config(run_dir: str | pathlib.Path) -> ConfigDict:
    """The configuration of a finished or running run, from its `config.json`.

    Raises:
      ConfigError: there is no run in this directory.
    """
    path = pathlib.Path(run_dir) / "config.json"
    if not path.exists():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json")
    return from_plain(json.loads(path.read_text()))


def write_config(run_dir: pathlib.Path, config: ConfigDict) -> None:
    """Store the configuration; a reader never sees half of it."""
    path = run_dir / "config.json"
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(to_plain(config), indent=2) + "\n")
    temporary.replace(path)


def check_same_run(stored: ConfigDict, given: ConfigDict) -> None:
    """Refuse to continue a run under a configuration that makes it another run.

    A key that was not there yet when the run began had what is its default now.

    Raises:
      ConfigError: naming every key that differs, with both values.
    """
    defaults = _flatten(to_plain(default_config(stored.task)))
    before, now = (_rename_kinds(_flatten(to_plain(c))) for c in (stored, given))
    before = {key: defaults[key] for key in defaults if key in now} | before
    changeable = tuple(f"{key}." for key in CHANGEABLE)
    differences = [
        f"{key} (was {before.get(key)!r}, is {now.get(key)!r})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not f"{key}.".startswith(changeable)
    ]
    if differences:
        raise ConfigError(
            "the run in this directory has another configuration: "
            f"{'; '.join(differences)}; choose another --workdir, or the old values"
        )


def _rename_kinds(flat: dict[str, Any]) -> dict[str, Any]:
    """Replace former names of data sources' kinds by the present ones."""
    return {
        key: ALIASES.get(value, value) if key.endswith(".kind") else value
        for key, value in flat.items()
    }


def _flatten(plain: Any, prefix: str = "") -> dict[str, Any]:
    items: Iterable[tuple[Any, Any]]
    if isinstance(plain, dict) and plain:
        items = plain.items()
    elif isinstance(plain, list) and any(isinstance(item, dict) for item in plain):
        items = enumerate(plain)
    else:
        return {prefix: plain}
    flat: dict[str, Any] = {}
    for key, value in items:
        name = f"{prefix}[{key}]" if isinstance(key, int) else f"{prefix}.{key}"
        flat |= _flatten(value, name.lstrip("."))
    return flat

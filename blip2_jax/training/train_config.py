"""The configuration of a training run: all keys with defaults and meaning.

An experiment is a file `configs/NAME.py` whose `get_config()` starts from
`default_config(task)` and sets the keys that differ. The configuration is locked: an
unknown key is an error, in the file and on the command line
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
from blip2_jax.nn.quantized import SCHEMES
from blip2_jax.parallel.files import read_json, write_atomically
from blip2_jax.parallel.paths import as_path
from blip2_jax.training.profiled_steps import parse_profile
from blip2_jax.training.value_ranges import wrong_values

CONFIG = "config.json"  # in the directory of a run
TASKS = ("stage1", "stage2", "contrast", "language_model")
OPTIMIZERS = ("adamw", "muon")

# Keys that do not change the sequence of losses, up to rounding. A run may be continued
# with other values of these keys only. `steps` is not among them, because the learning
# rate schedule depends on it.
CHANGEABLE = (
    "frozen_sources",  # files may move; their digests must not change
    "log_every",
    "mesh",
    "model.attention",
    "model.scan",
    "objective.exchange",
    "optimizer.sharded",
    "data.workers",
    "data.prefetch",
    "data.max_broken_share",
    "checkpoint",
    # Not metric, mode and rerank (which names the default metric): the best checkpoint
    # is found by comparing the scores of one metric.
    "evaluation.every",
    "evaluation.sources",
    "evaluation.batch_size",
    "evaluation.max_examples",
    "evaluation.max_new_tokens",
    "evaluation.num_beams",
    "logging",
    "profile",
    "compilation_cache",
    "replay",
)

_FROZEN = {
    "stage1": ("^visual_encoder/",),
    "stage2": ("^visual_encoder/", "^language_model/"),
    "contrast": (),
    "language_model": (),
}
# Stage 2 does not use the text branch of the Q-Former. Checkpoints carry it along for a
# later VQA fine-tune.
_TEXT_BRANCH = (
    "^qformer/embeddings/(word|position)$",
    "^qformer/layer_[0-9]+/text_mlp(_norm)?/",
    "^qformer/head/",
    "^(vision_projection|text_projection|itm_head)/",
    "^temperature$",
)
# Rules of the defaults; a model that lacks a part needs no other list. Any other rule
# that matches nothing is an error.
DEFAULT_RULES = (*(rule for rules in _FROZEN.values() for rule in rules), *_TEXT_BRANCH)


class ConfigError(ValueError):
    """The configuration is invalid; the message is one sentence for the user."""


def default_config(task: str = "stage1") -> ConfigDict:
    """Return all keys with defaults: the values of the paper where it gives them.

    Sources of data and of frozen weights are empty.

    Args:
      task: one of `TASKS`; it determines `frozen`, `carried` and some defaults.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    config = ConfigDict()
    config.task = task
    config.seed = 0
    config.steps = 250_000 if task == "stage1" else 80_000
    config.batch_size = 1680  # of the global batch
    # Of matmul inputs. Trainable parameters are float32 always.
    config.precision = "bfloat16"

    config.model = _model()
    config.init = _init()
    # Weights of image encoder and language model. A tower that `frozen` does not match
    # starts from them. Position embeddings are interpolated to the image size. Each is
    # a file or directory of the tower's project (EVA-CLIP, CLIP, SigLIP, DINOv2, OPT,
    # T5; docs/conversion.md) or of `launch/convert.py`, a run directory, one of the
    # shipped "shapes:vision", "shapes:opt", "shapes:t5" ("shapes:opt_small", ...), a
    # name of the Hugging Face hub (docs/files.md), or "random" (for tests).
    config.frozen_sources = ConfigDict({"vision": "", "language_model": ""})
    # How the kernels of the frozen towers are stored and multiplied: "" in `precision`,
    # or a scheme of `nn.quantized`: "int8" and "int4" save memory, "int8_matmul" and
    # "fp8_matmul" also time on devices that have such matmuls.
    config.frozen_precision = ConfigDict({"vision": "", "language_model": ""})
    # Regular expressions of parameter paths. Frozen parameters are used, but neither
    # trained nor checkpointed. Carried ones are not used by the task, but checkpointed
    # for a later one.
    config.frozen = _FROZEN[task]
    config.carried = _TEXT_BRANCH if task == "stage2" else ()
    # LoRA (training/lora.py): frozen kernels whose paths match one of `targets` get
    # trained matrices of this rank beside them. Rank 0 and no targets: no LoRA.
    config.lora = ConfigDict({"rank": 0, "alpha": 16.0, "targets": ()})
    # Fields of the options of the loss (`Stage1Options`, `Stage2Options`, ...).
    config.objective = ConfigDict()
    config.optimizer = _optimizer(task)

    config.data = _data(task)
    # -1: all devices that the other axes leave.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.checkpoint = _checkpoint()
    config.evaluation = _evaluation()
    config.log_every = 50
    config.logging = ConfigDict(
        {"wandb": False, "wandb_project": "blip2_jax", "negatives": False}
    )
    # Steps FIRST:LAST of which a profile is written to DIR/profile; "": none.
    config.profile = ""
    # A negatives.jsonl of another run: use these hard negatives instead of sampling.
    config.replay = ""
    # A directory that keeps compiled programs for later runs; "": that of the user.
    # `--compile_cache` and JAX_COMPILATION_CACHE_DIR have priority.
    config.compilation_cache = ""
    return config.lock()


def _model() -> ConfigDict:
    return ConfigDict(
        {
            "preset": "pretrain",
            # Sizes that differ from the preset, e.g. {"qformer": {"depth": 4}}.
            "overrides": {},
            # Scan over equal blocks of towers and, in training steps on a TPU, of
            # the Q-Former: shorter compilation (docs/training.md).
            "scan": True,
            # Rematerialisation of blocks in the backward pass: "none", "full", or
            # "dots", which keeps matmuls of activations with weights
            # (docs/training.md).
            "remat": "none",
            # "xla"; "cudnn" (GPU) and "pallas" (TPU): a fused kernel where possible;
            # "auto": the platform's kernel for unmasked attention (image encoders)
            # where it is better (docs/training.md).
            "attention": "auto",
            # Stage 2: the Q-Former reads the question beside the queries, as in the VQA
            # fine-tune of the paper. Its text branch is then trained too.
            "question_in_qformer": False,
        }
    )


def _init() -> ConfigDict:
    """Return the keys that say where a new run starts from; empty: from scratch."""
    return ConfigDict(
        {
            "from_run": "",  # a run directory, e.g. of stage 1
            "which": "last",  # checkpoint of that run: "last", "best" or a step
            # Files or directories of this package, BERT, LAVIS or Hugging Face, or
            # names of its hub.
            "from_weights": (),
        }
    )


def _optimizer(task: str) -> ConfigDict:
    return ConfigDict(
        {
            "name": "adamw",  # as in the paper; "muon" needs fewer steps
            "learning_rate": 1e-4,
            "warmup_steps": 2000,
            "warmup_start_learning_rate": 1e-6,
            "final_learning_rate": 5e-5 if task == "stage2" else 1e-5,
            "weight_decay": 0.05,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            "clip": 0.0,  # largest gradient norm; 0: no clipping, as in the original
            "original_decay": False,  # decay the temperature too, as the original does
            "layer_decay": 1.0,  # rate decay per block of a trained image encoder
            "rate_factors": (),  # pairs (pattern of paths, learning rate factor)
            # Number of chunks that a step splits its batch into, to save memory. Losses
            # stay means over the whole batch, and ITC contrasts the whole batch.
            "accumulate": 1,
            # Split trainable parameters and optimizer state over all devices, which
            # then update a part each (ZeRO): less memory and a shorter update.
            "sharded": False,
        }
    )


def _data(task: str) -> ConfigDict:
    """Return the fields of `DataConfig`; see there."""
    fields = ConfigDict(dataclasses.asdict(DataConfig(train=())))
    fields.workers = 0 if task == "language_model" else 8
    return fields


def _checkpoint() -> ConfigDict:
    return ConfigDict({"every": 1000, "keep": 2})  # keeps the best one too


def _evaluation() -> ConfigDict:
    return ConfigDict(
        {
            "every": 0,  # 0: never
            "sources": (),  # as data.train
            "metric": "",  # score that selects the best checkpoint; see `best_metric`
            "mode": "max",
            "batch_size": 64,
            "max_examples": 0,  # 0: all
            "max_new_tokens": 30,
            "num_beams": 1,
            "rerank": 32,  # number of candidates that ITM re-ranks (stage 1)
        }
    )


def validate(config: ConfigDict) -> None:
    """Check the values that no later part of the set-up checks.

    Raises:
      ConfigError: a value is invalid; the message names the key and the valid values.
    """
    _one_of("task", config.task, TASKS)
    _one_of("precision", config.precision, PRECISIONS)
    for tower, scheme in config.get("frozen_precision", {}).items():
        _one_of(f"frozen_precision.{tower}", scheme, ("", *SCHEMES))
    _one_of("optimizer.name", config.optimizer.name, OPTIMIZERS)
    _one_of("evaluation.mode", config.evaluation.mode, ("max", "min"))
    for message in wrong_values(config):
        raise ConfigError(message)
    parse_profile(config.profile, config.steps)
    if config.model.question_in_qformer and config.task != "stage2":
        raise ConfigError(
            "config.model.question_in_qformer is set, but the task is "
            f"{config.task!r}; it belongs to 'stage2'"
        )
    if not config.data.train:
        raise ConfigError("config.data.train is empty; it must name a source of data")
    if config.logging.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "config.logging.wandb is set, but wandb is not installed: pip install wandb"
        )
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


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """Convert a configuration to nested dicts and lists that JSON can store."""
    return json.loads(json.dumps(config.to_dict()))


def from_plain(plain: dict[str, Any]) -> ConfigDict:
    """Convert the result of `to_plain` back; lists become tuples."""
    return ConfigDict(_tuples(plain)).lock()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def canonical(config: ConfigDict) -> ConfigDict:
    """Return a locked copy, equal to what is read back from the stored form."""
    return from_plain(to_plain(config))


def read_config(run_dir: str | pathlib.Path) -> ConfigDict:
    """Read the configuration of a run from its `config.json`.

    Raises:
      ConfigError: the directory holds no run.
      FileFormatError: the file is empty, truncated or not JSON.
      OSError: it cannot be read.
    """
    path = as_path(run_dir) / CONFIG
    try:
        plain = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{run_dir} is not a run directory: it has no {CONFIG}"
        ) from None
    if not isinstance(plain, dict) or plain.get("task") not in TASKS:
        raise ConfigError(f"{path} is not the configuration of a run")
    return from_plain(plain)


def write_config(run_dir: pathlib.Path, config: ConfigDict) -> None:
    """Write the configuration to `config.json` atomically."""
    write_atomically(run_dir / CONFIG, json.dumps(to_plain(config), indent=2) + "\n")


def check_same_run(
    stored: ConfigDict, given: ConfigDict, free: tuple[str, ...] = ()
) -> None:
    """Check that a run may be continued with a configuration.

    A key that the stored configuration lacks has its default value.

    Args:
      stored: configuration that the run began with.
      given: configuration to continue with.
      free: keys that may differ in this run, besides `CHANGEABLE`.

    Raises:
      ConfigError: another key differs; the message names all such keys
        with both values.
    """
    defaults = _flatten(to_plain(default_config(stored.task)))
    before, now = (_rename_kinds(_flatten(to_plain(c))) for c in (stored, given))
    before = {key: defaults[key] for key in defaults if key in now} | before
    changeable = tuple(f"{key}{end}" for key in (*CHANGEABLE, *free) for end in ".[")
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

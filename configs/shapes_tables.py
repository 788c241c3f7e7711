"""blip2-jax train --config shapes_tables:RUN --workdir runs/small/RUN

One training of the paper's tables in small, on the shapes world; `launch/tables.py`
runs them all. RUN is a key of `RUNS` below: stage 1 behind a small and a large image
encoder, stage 2 in front of small and large language models and without a stage 1
before it (figure 5), and fine-tunes with the image encoder trained too. What a run
begins from is expected beside its directory: `...:RUN,DIRECTORY` says where.
"""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from blip2_jax.configs import (
    shapes_stage1,
    shapes_stage2_opt,
    shapes_stage2_t5,
    shapes_vqa,
)
from blip2_jax.training.train_config import ConfigError

LANGUAGE_MODELS = {"opt": shapes_stage2_opt, "t5": shapes_stage2_t5}
CURVE_POINTS = 6  # of figure 5
CURVE_SCENES = {"kind": "shapes", "split": "heldout", "texts": "questions", "count": 6}


@dataclasses.dataclass(frozen=True)
class Run:
    """A training: its configuration, from where its source lies; and its source."""

    make: Callable[[str], ConfigDict]
    source: str = ""


def stage1(vision: str = "") -> Run:
    """The Q-Former learns to see; `vision` is "" or "_small"."""

    def make(source: str) -> ConfigDict:
        config = shapes_stage1.get_config().unlock()
        config.steps = 600
        _use(config, vision)
        return config

    return Run(make)


def stage2(family: str, size: str = "", vision: str = "", begun: bool = True) -> Run:
    """Captions alone, in front of a language model: questions come as a surprise.

    Args:
      family: "opt" or "t5".
      size: of the language model, "" or "_small".
      vision: of the image encoder, "" or "_small".
      begun: from stage 1; else from nothing.
    """

    def make(source: str) -> ConfigDict:
        config = LANGUAGE_MODELS[family].get_config(source).unlock()
        config.steps = 900
        _use(config, vision, f"{family}{size}")
        (scenes,) = config.data.train
        config.data.train = (dict(scenes) | {"texts": "captions"},)
        config.data.question_share = 0.0
        if not begun:
            config.init.from_run, config.carried = "", ()
        if not size:  # the curves of figure 5
            config.evaluation.every = config.steps // CURVE_POINTS
            config.evaluation.sources = (CURVE_SCENES | {"start": 30_000, "size": 60},)
            config.evaluation.metric = "exact_match"
            config.evaluation.max_new_tokens = 6
        return config

    return Run(make, f"stage1{vision}" if begun else "")


def captions(family: str, size: str = "") -> Run:
    """Captions once more, with the image encoder trained (table 3)."""

    def make(source: str) -> ConfigDict:
        config = stage2(family, size).make(source)
        config.evaluation.every, config.evaluation.sources = 0, ()
        return _tuned(config, source)

    return Run(make, f"{family}{size}")


def questions(family: str) -> Run:
    """The Q-Former reads the question too, the image encoder is trained (table 4)."""

    def make(source: str) -> ConfigDict:
        config = shapes_vqa.get_config(source, family).unlock()
        config.evaluation.every, config.evaluation.sources = 0, ()
        return _tuned(config, source)

    return Run(make, family)


def retrieval(itg: bool = True) -> Run:
    """Contrast and matching once more, the image encoder trained (tables 5 and 6)."""

    def make(source: str) -> ConfigDict:
        config = _tuned(stage1().make(""), source)
        config.objective.itg_weight = 1.0 if itg else 0.0
        return config

    return Run(make, "stage1")


def _use(config: ConfigDict, vision: str, language: str = "") -> None:
    """An image encoder and a language model of the world, by name."""
    config.model.preset = f"shapes{vision}_{language}".removesuffix("_")
    config.frozen_sources.vision = f"shapes:vision{vision}"
    if language:
        config.frozen_sources.language_model = f"shapes:{language}"


def _tuned(config: ConfigDict, source: str) -> ConfigDict:
    """300 gentle steps that train the image encoder too, at a tenth of the rate."""
    config.steps = 300
    config.init.from_run, config.init.which = source, "last"
    config.frozen = tuple(rule for rule in config.frozen if "visual" not in rule)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.rate_factors = (("visual_encoder/.*", 0.1),)
    return config


RUNS: dict[str, Run] = {
    "stage1": stage1(),
    "stage1_small": stage1("_small"),
    "opt": stage2("opt"),
    "t5": stage2("t5"),
    "opt_without_stage1": stage2("opt", begun=False),
    "t5_without_stage1": stage2("t5", begun=False),
    "opt_small": stage2("opt", "_small"),
    "t5_small": stage2("t5", "_small"),
    "small_opt_small": stage2("opt", "_small", "_small"),
    "small_t5_small": stage2("t5", "_small", "_small"),
    "captions_opt": captions("opt"),
    "captions_t5": captions("t5"),
    "captions_opt_small": captions("opt", "_small"),
    "questions_opt": questions("opt"),
    "questions_t5": questions("t5"),
    "retrieval": retrieval(),
    "retrieval_without_itg": retrieval(itg=False),
}


def exams(name: str) -> list[str]:
    """The exams of a run, as `configs/eval/shapes_tables.py` names them."""
    kind = name.partition("_")[0]
    if kind in ("stage1", "retrieval"):
        tasks = ["retrieval"]
    elif kind in ("captions", "questions"):
        tasks = [kind]
    else:  # what fine-tunes are compared with can do both
        tasks = ["questions", "captions"] if name in LANGUAGE_MODELS else ["questions"]
    found = [f"{task},{split}" for task in tasks for split in ("heldout", "validation")]
    if name in LANGUAGE_MODELS:
        found += ["questions,heldout,blank", "questions,heldout,shuffled"]
    if kind in ("captions", "questions"):
        found.append(f"{kind},heldout,blank")
    return found


def get_config(words: str = "stage1") -> ConfigDict:
    """The run's configuration."""
    name, _, directory = words.partition(",")
    if name not in RUNS:
        raise ConfigError(f"no run {name!r}; there are {', '.join(RUNS)}")
    run = RUNS[name]
    source = f"{directory or 'runs/small'}/{run.source}" if run.source else ""
    return run.make(source).lock()

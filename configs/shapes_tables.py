"""blip2-jax train --config shapes_tables:RUN --workdir runs/small/RUN

One run of the small tables on the shapes world; `blip2-jax tables` trains them all. RUN
is a key of `RUNS` below: stage 1 with a small and a large image encoder, stage 2 with
small and large language models and without stage 1 (figure 5), and fine-tunes that
train the image encoder too. The run from which RUN starts is expected in the same
directory; `shapes_tables:RUN,DIRECTORY` names another.
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
CURVE_POINTS = 6  # evaluations on each curve of figure 5
CURVE_SCENES = {"kind": "shapes", "split": "heldout", "texts": "questions", "count": 6}


@dataclasses.dataclass(frozen=True)
class TableRun:
    """A run of the tables.

    Attributes:
      make: function from the directory of the source to the configuration.
      source: name of the run from which this one starts; "": none.
    """

    make: Callable[[str], ConfigDict]
    source: str = ""


def stage1(vision: str = "") -> TableRun:
    """Return a run of stage 1; `vision` is "" or "_small"."""

    def make(source: str) -> ConfigDict:
        config = shapes_stage1.get_config().unlock()
        config.steps = 600
        _set_models(config, vision)
        return config

    return TableRun(make)


def stage2(
    family: str, size: str = "", vision: str = "", from_stage1: bool = True
) -> TableRun:
    """Return a run of stage 2 on captions alone, so that questions are zero-shot.

    Args:
      family: "opt" or "t5".
      size: size of the language model, "" or "_small".
      vision: size of the image encoder, "" or "_small".
      from_stage1: whether to start from stage 1 or from scratch.
    """

    def make(source: str) -> ConfigDict:
        config = LANGUAGE_MODELS[family].get_config(source).unlock()
        config.steps = 900
        _set_models(config, vision, f"{family}{size}")
        (scenes,) = config.data.train
        config.data.train = (dict(scenes) | {"texts": "captions"},)
        config.data.question_share = 0.0
        if not from_stage1:
            config.init.from_run, config.carried = "", ()
        if not size:  # the curves of figure 5
            config.evaluation.every = config.steps // CURVE_POINTS
            config.evaluation.sources = (CURVE_SCENES | {"start": 30_000, "size": 60},)
            config.evaluation.metric = "exact_match"
            config.evaluation.max_new_tokens = 6
        return config

    return TableRun(make, f"stage1{vision}" if from_stage1 else "")


def captions(family: str, size: str = "") -> TableRun:
    """Return a fine-tune on captions that trains the image encoder (table 3)."""

    def make(source: str) -> ConfigDict:
        config = stage2(family, size).make(source)
        config.evaluation.every, config.evaluation.sources = 0, ()
        _fine_tune(config, source)
        return config

    return TableRun(make, f"{family}{size}")


def questions(family: str) -> TableRun:
    """Return a fine-tune on questions, which the Q-Former reads too (table 4)."""

    def make(source: str) -> ConfigDict:
        config = shapes_vqa.get_config(source, family).unlock()
        config.evaluation.every, config.evaluation.sources = 0, ()
        _fine_tune(config, source)
        return config

    return TableRun(make, family)


def retrieval(itg: bool = True) -> TableRun:
    """Return a fine-tune for retrieval that trains the image encoder (tables 5, 6)."""

    def make(source: str) -> ConfigDict:
        config = stage1().make("")
        _fine_tune(config, source)
        config.objective.itg_weight = 1.0 if itg else 0.0
        return config

    return TableRun(make, "stage1")


def _set_models(config: ConfigDict, vision: str, language: str = "") -> None:
    """Set the image encoder ("" or "_small") and the language model ("opt_small")."""
    config.model.preset = f"shapes{vision}_{language}".removesuffix("_")
    config.frozen_sources.vision = f"shapes:vision{vision}"
    if language:
        config.frozen_sources.language_model = f"shapes:{language}"


def _fine_tune(config: ConfigDict, source: str) -> None:
    """Train for 300 steps from a run, the image encoder at a tenth of the rate."""
    config.steps = 300
    config.init.from_run, config.init.which = source, "last"
    config.frozen = tuple(rule for rule in config.frozen if "visual" not in rule)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.rate_factors = (("visual_encoder/.*", 0.1),)


RUNS: dict[str, TableRun] = {
    "stage1": stage1(),
    "stage1_small": stage1("_small"),
    "opt": stage2("opt"),
    "t5": stage2("t5"),
    "opt_without_stage1": stage2("opt", from_stage1=False),
    "t5_without_stage1": stage2("t5", from_stage1=False),
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
    """Return the evaluations of a run: arguments of `configs/eval/shapes_tables.py`."""
    kind = name.partition("_")[0]
    if kind in ("stage1", "retrieval"):
        tasks = ["retrieval"]
    elif kind in ("captions", "questions"):
        tasks = [kind]
    elif name in LANGUAGE_MODELS:  # fine-tunes of both tasks are compared with these
        tasks = ["questions", "captions"]
    else:
        tasks = ["questions"]
    names = [f"{task},{split}" for task in tasks for split in ("heldout", "validation")]
    if name in LANGUAGE_MODELS:
        names += ["questions,heldout,blank", "questions,heldout,shuffled"]
    if kind in ("captions", "questions"):
        names.append(f"{kind},heldout,blank")
    return names


def get_config(argument: str = "stage1") -> ConfigDict:
    """Build the configuration; `argument` is "RUN" or "RUN,DIRECTORY"."""
    name, _, directory = argument.partition(",")
    if name not in RUNS:
        raise ConfigError(f"no run {name!r}; there are {', '.join(RUNS)}")
    run = RUNS[name]
    source = f"{directory or 'runs/small'}/{run.source}" if run.source else ""
    return run.make(source).lock()

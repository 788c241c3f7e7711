"""blip2-jax train --config finetune:MODEL,DATA --workdir runs/mine

Fine-tune a model on captions or questions of your own. MODEL is a Hugging Face folder
or hub name, a LAVIS file, a folder that `blip2-jax convert` wrote, a run, or "shapes",
the small model of the package. DATA is a file or folder in any layout of
docs/layouts.md. A tenth of the images is held out for evaluation.

Sizes, prompts, tokenizers and image size are the model's. The Q-Former and the
projection are trained; image encoder and language model stay frozen. The batch size is
the largest up to 64 that fits the memory of a device, by an estimate.

Words and NAME=VALUE pairs may follow, joined by commas:
  caption, vqa, retrieval   what to train for; default: by the model and the data
  vision                    train the image encoder too
  lora, lora=RANK           train only matrices of low rank (8) beside the attention's
                            query and value kernels; all else is frozen
  epochs=5                  passes over the captions or questions
  batch=16                  batch size
  images=DIR                directory of the images
  vision=PATH, language_model=PATH, qformer_tokenizer=PATH, language_tokenizer=PATH
                            parts that MODEL lacks, as in `blip2_jax.load`
"""

import dataclasses
import sys

from ml_collections import ConfigDict

from blip2_jax.convert.model_source import TOWER_PREFIXES, TOWERS, ModelSource
from blip2_jax.data.dataclass_options import from_options
from blip2_jax.data.sources.layouts import Layout, detect_layout
from blip2_jax.data.text.prompts import CHAT_PROMPT, QUESTION_PROMPT
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.inference.shipped_models import SHIPPED_MODELS
from blip2_jax.models import presets
from blip2_jax.models.sizes import FeaturesConfig, ViTConfig
from blip2_jax.planning.batch_fit import fitting_batch_size, usable_memory
from blip2_jax.training.checkpoints import is_run
from blip2_jax.training.train_config import ConfigError, default_config, read_config

PURPOSES = ("caption", "vqa", "retrieval")
PARTS = ("vision", "language_model", "qformer_tokenizer", "language_tokenizer")
DEFAULTS = {"epochs": "5", "batch": "", "images": "", "lora": ""} | dict.fromkeys(
    PARTS, ""
)
LORA_RANK = "8"
LARGEST_BATCH = 64
HELD_OUT = 0.1  # share of the images
CAPTION_PROMPT = "a photo of"  # of the paper's caption fine-tunes


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The parsed argument after ':' in `--config`.

    Attributes:
      model: path or hub name of the model.
      data: path of the data.
      purpose: one of `PURPOSES`, or "" to choose by model and data.
      train_vision: train the image encoder too.
      values: values of `DEFAULTS` by name.
    """

    model: str
    data: str
    purpose: str
    train_vision: bool
    values: dict[str, str]


def get_config(argument: str = "") -> ConfigDict:
    """Build the configuration; `argument` is "MODEL,DATA[,WORD or NAME=VALUE...]"."""
    args = parse(argument)
    extra = {name: args.values[name] for name in PARTS}
    source = open_model(args.model, from_options(ExtraWeights, extra, "finetune"))
    layout = detect_layout(
        args.data, images=args.values["images"], default_split="train"
    )
    purpose = args.purpose or default_purpose(source, layout)
    check_purpose(purpose, source, layout, args)

    config = default_config("stage1" if source.stage == 1 else "stage2").unlock()
    set_model(config, source, args)
    set_data(config, source, layout, purpose)
    if not args.values["batch"]:
        memory = usable_memory()
        config.batch_size = fitting_batch_size(config, memory, LARGEST_BATCH)
    set_schedule(config, args, examples_of(layout, purpose))
    describe(config, source, layout, purpose, trained_part(args))
    return config.lock()


def parse(argument: str) -> Arguments:
    """Parse "MODEL,DATA[,...]".

    Raises:
      ConfigError: MODEL or DATA is missing, or a word or name is unknown.
    """
    model, data, *options = [*argument.split(","), ""]
    if not model or not data:
        raise ConfigError(
            f"finetune needs a model and data, but got {argument!r}: "
            "--config finetune:MODEL,DATA"
        )
    values, purpose, train_vision = dict(DEFAULTS), "", False
    for option in filter(None, options):
        name, equals, value = option.partition("=")
        if equals and name in values and value:
            values[name] = value
        elif option in PURPOSES:
            purpose = option
        elif option == "vision":
            train_vision = True
        elif option == "lora":
            values["lora"] = LORA_RANK
        else:
            raise ConfigError(
                f"finetune does not know {option!r}; after MODEL,DATA it takes "
                f"{', '.join(PURPOSES)}, vision, lora, "
                f"{', '.join(f'{known}=...' for known in values)}"
            )
    for name in ("epochs", "batch", "lora"):
        if values[name] and not (values[name].isdigit() and int(values[name])):
            raise ConfigError(f"{name}={values[name]}: expected a positive integer")
    return Arguments(model, data, purpose, train_vision, values)


def default_purpose(source: ModelSource, layout: Layout) -> str:
    """Return what to train for if the user does not say."""
    if source.stage == 1:
        return "retrieval"
    return "caption" if layout.captions else "vqa"


def check_purpose(
    purpose: str, source: ModelSource, layout: Layout, args: Arguments
) -> None:
    """Check that model and data serve the purpose.

    Raises:
      ConfigError: they do not.
    """
    if (purpose == "retrieval") != (source.stage == 1):
        fitting = "retrieval" if source.stage == 1 else "caption and vqa"
        raise ConfigError(
            f"{args.model} is a stage-{source.stage} model, which trains for "
            f"{fitting}, not for {purpose}"
        )
    texts = "questions" if purpose == "vqa" else "captions"
    if not getattr(layout, texts):
        raise ConfigError(f"{args.data} has no {texts}, which {purpose} needs")
    if isinstance(source.config.vision, FeaturesConfig):
        raise ConfigError(
            f"{args.model} was trained on precomputed features, not on images"
        )


def set_model(config: ConfigDict, source: ModelSource, args: Arguments) -> None:
    """Set sizes, initial weights, tokenizers and what is trained."""
    sizes = presets.to_plain(source.config)
    sizes.pop("prompt")
    config.model.overrides = ConfigDict(sizes)
    config.precision = source.precision
    config.data.tokenizer.qformer = source.qformer_tokenizer
    config.data.tokenizer.language_model = source.language_tokenizer
    config.data.prompt_template = source.prompt_template
    towers = ("vision", "language_model") if source.stage == 2 else ("vision",)
    if is_run(args.model):
        check_trained_towers(source, args)
        config.init.from_run, config.init.which = args.model, "best"
        run = read_config(args.model)
        former = run.frozen_sources
        config.data.image.augment = run.data.image.get("augment", True)
    elif args.model in SHIPPED_MODELS:
        shipped = SHIPPED_MODELS[args.model]
        config.init.from_weights, former = (shipped.trained,), shipped.towers
        config.data.image.augment = False  # its captions say where things are
    else:
        config.init.from_weights = (args.model,)
        former = dict.fromkeys(towers, args.model)
    for tower in towers:
        config.frozen_sources[tower] = args.values[tower] or former[tower]
    config.model.question_in_qformer = source.question_in_qformer
    if source.prompt_in_qformer:
        config.data.qformer_reads = "prompt"
    if args.train_vision:
        config.model.remat = "full"  # its activations would fill a device
    if args.values["lora"]:
        set_lora(config, source, args)
    elif args.train_vision:
        config.frozen = tuple(p for p in config.frozen if p != "^visual_encoder/")
        config.optimizer.layer_decay = 0.95


def check_trained_towers(source: ModelSource, args: Arguments) -> None:
    """Refuse to freeze a tower that a run has trained.

    Frozen weights come from their own files, which lack what the run has learned.
    """
    trained = [tower for tower in TOWERS if tower not in source.elsewhere]
    if args.train_vision and not args.values["lora"]:
        trained = [tower for tower in trained if tower != TOWER_PREFIXES["vision"]]
    if any(path.startswith(tuple(trained)) for path in source.arrays):
        raise ConfigError(
            f"{args.model} has trained {' and '.join(trained)}, which would be frozen "
            "here: convert the run (blip2-jax convert --to blip2_jax) and fine-tune "
            "the folder, or give `vision` to train its image encoder on"
        )


def set_lora(config: ConfigDict, source: ModelSource, args: Arguments) -> None:
    """Freeze all that the source provides, and adapt queries and values of attention.

    These two are what the authors of LoRA adapt.
    """
    parts = ["qformer", "language_model", *["visual_encoder"] * args.train_vision]
    config.lora.rank = int(args.values["lora"])
    config.lora.alpha = 2.0 * config.lora.rank
    config.lora.targets = (rf"^({'|'.join(parts)})/.*attention/(query|value)/kernel$",)
    # A Hugging Face folder of stage 1 lacks some parameters, which are trained.
    lacking = "|".join(source.absent)
    config.frozen = (f"^(?!({lacking})$)" if lacking else ".",)


def set_data(
    config: ConfigDict, source: ModelSource, layout: Layout, purpose: str
) -> None:
    """Set data, texts and the held-out part."""
    parts = {
        part: {"kind": "split", "of": layout.spec, "part": part, "share": HELD_OUT}
        for part in ("train", "held_out")
    }
    train = parts["train"]
    if purpose == "vqa":  # an epoch shows every question once, not every image
        train = {"kind": "per_question", "of": train}
        config.objective = ConfigDict({"mean_over": "texts"})
        is_chat = source.prompt_template == "chat"
        default = CHAT_PROMPT if is_chat else QUESTION_PROMPT
        config.data.question_prompt = source.question_prompt or default
        config.evaluation.metric = "exact_match"  # data of one answer has no other
        config.evaluation.max_new_tokens = 10
    elif purpose == "caption":
        # A run knows its prompt, even if that is none; a released folder does not.
        knows_prompt = source.origin in ("run", "shipped")
        default = "" if knows_prompt else CAPTION_PROMPT
        config.data.prompt = source.config.prompt or default
        config.data.prefix_split = "none"  # only the prompt precedes the caption
    config.data.train = (train,)
    vision = source.config.vision
    assert isinstance(vision, ViTConfig)  # see `check_purpose`
    config.data.image.size = vision.image_size
    config.data.max_text_length = {
        "caption": 32,
        "vqa": 64,
        "retrieval": min(32, source.config.qformer.max_positions),
    }[purpose]
    config.data.workers = 2
    config.evaluation.sources = (parts["held_out"],)
    config.evaluation.max_examples = 1000
    config.evaluation.num_beams = 5 if source.stage == 2 else 1


def examples_of(layout: Layout, purpose: str) -> int:
    """Return the number of training examples of an epoch, estimated if not counted."""
    texts = layout.questions if purpose == "vqa" else layout.captions
    total = texts * layout.records / layout.checked
    return max(1, round(total * (1 - HELD_OUT)))


def set_schedule(config: ConfigDict, args: Arguments, examples: int) -> None:
    """Set batch size, steps and learning rate; the rate is the paper's for COCO.

    Matrices of LoRA start from 0 and take ten times that rate.
    """
    if args.values["batch"]:
        config.batch_size = int(args.values["batch"])
    else:
        while config.batch_size > 8 and config.batch_size * 8 > examples:
            config.batch_size //= 2  # at least eight steps in an epoch
    epochs = int(args.values["epochs"])
    every = max(1, examples // config.batch_size)
    config.steps = epochs * every
    config.optimizer.learning_rate = 1e-4 if args.values["lora"] else 1e-5
    config.optimizer.warmup_steps = min(1000, config.steps // 10)
    config.optimizer.warmup_start_learning_rate = 1e-8
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.b2 = 0.999
    config.evaluation.every = every
    config.checkpoint.every = every
    config.log_every = max(1, min(50, every // 4))


def trained_part(args: Arguments) -> str:
    """Name what is trained, for the user."""
    if rank := args.values["lora"]:
        return f"matrices of LoRA (rank {rank})"
    return "Q-Former and image encoder" if args.train_vision else "Q-Former"


def describe(
    config: ConfigDict,
    source: ModelSource,
    layout: Layout,
    purpose: str,
    trained: str,
) -> None:
    """Print what was found and chosen."""
    for line in (
        f"model: {source.summary()}",
        f"data: {layout}",
        f"fine-tuning for {purpose}: trains the {trained}, batch {config.batch_size}, "
        f"{config.steps} steps, evaluates on {HELD_OUT:.0%} of the images every "
        f"{config.evaluation.every} steps",
    ):
        print(line, file=sys.stderr)

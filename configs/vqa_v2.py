"""blip2-jax train --config vqa_v2:opt6.7b --workdir runs/vqa_opt6_7b

Fine-tune for questions of VQAv2 and Visual Genome, with the image encoder trained at
490 pixels and the question in the Q-Former and in the language model, from a stage-2
run that carries the text branch of stage 1 (appendix, table 8). The argument selects
the language model, opt2.7b, opt6.7b or flant5xl. `vqa_v2:opt2.7b,train` keeps the
validation questions of VQAv2 for evaluation; `frozen` keeps the image encoder as it
was. `--config.model.question_in_qformer=False` gives the question to the language model
only.

A step shows each question with one of its ten answers. A distinct answer is drawn with
the share of annotators who gave it, and the loss of a text is the sum over its tokens:
the expected loss is that of all answers weighted by these shares. Rows for all answers
would have the same expectation, but need three times the passes of the language model,
and their number would vary. A question of Visual Genome, which has one answer, counts
as much as any other. The final rate and the start of the warm-up are those of the
authors' code.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.data.text.prompts import QUESTION_PROMPT
from blip2_jax.models import presets
from blip2_jax.training.train_config import default_config

EPOCHS = 5
QUESTIONS = {"trainval": 658_111, "train": 443_757}  # of VQAv2
# Decay of the learning rate from block to block of the image encoder.
LAYER_DECAY = {"opt2.7b": 0.95, "opt6.7b": 0.9, "flant5xl": 0.95}


def get_config(variant: str = "opt2.7b") -> ConfigDict:
    """Build the configuration; `variant` is e.g. "flant5xl,train,frozen"."""
    language, split, frozen = common.parse_variant(
        variant, tuple(LAYER_DECAY), tuple(QUESTIONS), ("", "frozen")
    )
    config = default_config("stage2").unlock()
    config.batch_size = 128
    config.steps = EPOCHS * QUESTIONS[split] // config.batch_size

    config.model.preset = f"pretrain_{language}"
    common.set_vision(config, presets.at_resolution(presets.EVA_VIT_G, 490))
    config.model.remat = "full"  # the image encoder's activations would fill a device
    config.model.question_in_qformer = True
    config.objective = ConfigDict({"mean_over": "texts"})
    config.init.from_run = common.run_directory(language)
    config.frozen = ("^language_model/",)
    config.frozen_sources.vision = common.EVA_VIT_G
    config.frozen_sources.language_model = common.LANGUAGE_MODELS[language]
    config.data.tokenizer.qformer = common.BERT
    config.data.tokenizer.language_model = common.LANGUAGE_MODELS[language]

    sources = [common.annotation_file("vqa_train.json", common.COCO_IMAGES)]
    if split == "trainval":
        sources += [common.annotation_file("vqa_val.json", common.COCO_IMAGES)]
    sources += [common.annotation_file("vg_qa.json", "data/vg/images")]
    # An epoch shows every question once, not every image.
    config.data.train = tuple({"kind": "per_question", "of": s} for s in sources)
    config.data.question_prompt = QUESTION_PROMPT  # for FlanT5 too
    config.data.max_text_length = 64
    config.data.length_buckets = (24, 32, 48, 64)
    if language == "flant5xl":
        config.data.max_target_length = 16  # the decoder writes only the answer

    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 1000
    config.optimizer.warmup_start_learning_rate = 1e-8
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.layer_decay = LAYER_DECAY[language]

    # After training on "trainval", no questions are left for evaluation.
    config.evaluation.every = config.steps // EPOCHS if split == "train" else 0
    config.evaluation.sources = (common.VQA_VALIDATION,)
    config.evaluation.metric = "vqa_accuracy"
    config.evaluation.max_examples = 1000
    config.evaluation.num_beams = 5
    config.evaluation.max_new_tokens = 10
    config.compilation_cache = "runs/compiled"
    if frozen:
        common.freeze_vision(config)
    return config.lock()

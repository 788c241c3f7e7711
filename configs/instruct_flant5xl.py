"""blip2-jax train --config instruct_flant5xl --workdir runs/instruct_flant5xl

Instruction tuning as of InstructBLIP (Dai et al. 2023) with FlanT5-XL, from the stage-2
run that `--config.init.from_run` names, which carries the text branch of stage 1. The
Q-Former is trained and reads the whole prompt; image encoder and language model stay
frozen. `instruct_flant5xl:flant5xxl` selects FlanT5-XXL.

A data set is drawn with the square root of its size (section 2.4 of the paper), so that
small ones are neither lost nor repeated without end. Six of the paper's held-in sets
are here; LLaVA-Instruct and the generation of questions are not. TextCaps, A-OKVQA and
OCR-VQA are read as annotations with captions or questions (docs/data.md), to which
their files must be brought. Steps, batch sizes and optimizer are those of section 2.6,
sizes of data sets those of their authors; all are written from memory.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.data.text import instructions
from blip2_jax.training.train_config import default_config

BATCH_SIZES = {"flant5xl": 192, "flant5xxl": 64}
# Captions or questions of the training sets.
SIZES = {
    "coco": common.COCO_CAPTIONS,
    "textcaps": 109_765,
    "vqa_v2": 443_757,
    "ok_vqa": 9_009,
    "a_okvqa": 17_056,
    "ocr_vqa": 801_579,
}
SOURCES = {
    "coco": common.COCO_TRAIN,
    "textcaps": common.annotation_file("textcaps_train.json", "data/textcaps"),
    "vqa_v2": common.annotation_file("vqa_train.json", common.COCO_IMAGES),
    "ok_vqa": common.annotation_file("okvqa_train.json", common.COCO_IMAGES),
    "a_okvqa": common.annotation_file("aokvqa_train.json", common.COCO_IMAGES),
    "ocr_vqa": common.annotation_file("ocrvqa_train.json", "data/ocrvqa"),
}


def get_config(language: str = "flant5xl") -> ConfigDict:
    """Build the configuration; `language` is "flant5xl" or "flant5xxl"."""
    (language,) = common.parse_variant(language, tuple(BATCH_SIZES))
    return instruction_tuning(language, BATCH_SIZES[language]).lock()


def instruction_tuning(language: str, batch_size: int) -> ConfigDict:
    """Build the configuration of any language model, unlocked.

    Args:
      language: key of `common.LANGUAGE_MODELS`.
      batch_size: rows of a step.
    """
    config = default_config("stage2").unlock()
    config.steps = 60_000
    config.batch_size = batch_size

    config.model.preset = f"instructblip_{language}"
    config.model.question_in_qformer = True
    config.init.from_run = common.run_directory(language)
    config.frozen_sources.vision = common.EVA_VIT_G
    config.frozen_sources.language_model = common.LANGUAGE_MODELS[language]
    config.data.tokenizer.qformer = common.BERT
    config.data.tokenizer.language_model = common.LANGUAGE_MODELS[language]

    weights = common.square_root_weights(SIZES)
    config.data.train = tuple(
        source | {"weight": weights[name]} for name, source in SOURCES.items()
    )
    config.data.image.size = 224
    config.data.qformer_reads = "prompt"
    config.data.prefix_split = "none"
    config.data.caption_prompts = instructions.CAPTION_INSTRUCTIONS
    config.data.question_prompts = instructions.QUESTION_INSTRUCTIONS
    config.data.prompt = instructions.CAPTION_EVALUATION
    config.data.question_prompt = instructions.QUESTION_EVALUATION
    config.data.max_text_length = 128
    config.data.length_buckets = (32, 48, 64, 128)

    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 1000
    config.optimizer.warmup_start_learning_rate = 1e-8
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999

    config.evaluation.every = 3000
    config.evaluation.sources = (common.VQA_VALIDATION,)
    config.evaluation.metric = "vqa_accuracy"
    config.evaluation.max_examples = 1000
    config.evaluation.num_beams = 5
    config.evaluation.max_new_tokens = 10
    config.compilation_cache = "runs/compiled"
    return config

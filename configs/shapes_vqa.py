"""blip2-jax train --config shapes_vqa:RUN --workdir runs/shapes_vqa

Fine-tune for questions on the shapes world, from the stage-2 run RUN (by default
`runs/shapes_stage2_opt`), which carries the text branch of stage 1. The Q-Former reads
the question beside its queries; `--config.model.question_in_qformer=False` gives the
question to the language model only. The image encoder stays frozen, because all images
have the same size.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import shapes_stage1, shapes_stage2_opt


def get_config(
    stage2: str = "runs/shapes_stage2_opt", family: str = "opt"
) -> ConfigDict:
    """Build the configuration; `family`, "opt" or "t5", is that of the stage-2 run."""
    config = shapes_stage2_opt.get_config(stage2, family).unlock()
    config.steps = 600
    config.model.question_in_qformer = True
    config.objective = ConfigDict({"mean_over": "texts"})
    questions = {"kind": "shapes", "texts": "questions", "count": 1}
    train = questions | {"split": "train", "size": shapes_stage1.SCENES}
    config.data.train = ({"kind": "per_question", "of": train},)
    config.data.tokenizer.qformer = "shapes:bert"
    config.optimizer.learning_rate = 1e-3
    config.evaluation.every = config.steps // 3
    config.evaluation.metric = "exact_match"
    config.evaluation.sources = (questions | {"split": "validation", "size": 256},)
    config.evaluation.max_new_tokens = 6
    return config.lock()

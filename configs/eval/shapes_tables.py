"""blip2-jax evaluate --config eval/shapes_tables:EXAM --model RUN

An exam of the paper's tables in small, on the shapes world: EXAM is "TASK,SPLIT", TASK
one of questions, captions, retrieval, SPLIT heldout (each scene has something whose
size, colour and shape never came together in training) or validation (other scenes of
things that did). "questions,heldout,blank" and "...,shuffled" show other pictures than
those the questions are about. No recipe was tuned on these scenes.
"""

from ml_collections import ConfigDict

from blip2_jax.evaluation.eval_config import default_evaluation

START, SCENES = 20_000, 200
TASKS = {
    "questions": ("vqa", {"texts": "questions", "count": 6}),
    "captions": ("captioning", {"texts": "captions", "count": 5}),
    "retrieval": ("retrieval", {"texts": "captions", "count": 1}),
}
SPLITS = ("heldout", "validation")


def get_config(exam: str = "questions,heldout") -> ConfigDict:
    """The evaluation's configuration."""
    name, split, pictures, *_ = (*exam.split(","), "", "")
    if name not in TASKS or split not in SPLITS:
        known = f"{' or '.join(TASKS)}, then {' or '.join(SPLITS)}"
        raise ValueError(f"no exam {exam!r}: choose {known}")
    task, texts = TASKS[name]
    config = default_evaluation(task).unlock()
    config.title, config.which = exam, "last"
    scenes = {"kind": "shapes", "split": split, "start": START, "size": SCENES}
    shown = scenes | texts
    if pictures:
        shown = {"kind": "wrong_images", "of": shown, "pictures": pictures}
    config.data = (shown,)
    config.batch_size, config.rerank = 100, 16
    config.tokenizer = "python"
    if task != "retrieval":
        config.decoding.num_beams = 1
        config.decoding.max_new_tokens = 6 if task == "vqa" else 28
    return config.lock()

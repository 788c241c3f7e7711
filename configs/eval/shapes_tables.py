"""blip2-jax evaluate --config eval/shapes_tables:EXAM --model RUN

An evaluation of the small tables on the shapes world. EXAM is "TASK,SPLIT": TASK is
questions, captions or retrieval; SPLIT is heldout (every scene has an object whose
size, colour and shape never occur together in training) or validation (other scenes of
objects that do). "questions,heldout,blank" and "questions,heldout,shuffled" show images
other than those that the questions are about. No configuration was tuned on these
scenes.
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
    """Build the configuration; `exam` is e.g. "questions,heldout,blank"."""
    name, split, images, *_ = (*exam.split(","), "", "")
    if name not in TASKS or split not in SPLITS:
        known = f"{' or '.join(TASKS)}, then {' or '.join(SPLITS)}"
        raise ValueError(f"no exam {exam!r}: choose {known}")
    task, texts = TASKS[name]
    config = default_evaluation(task).unlock()
    config.title, config.which = exam, "last"
    scenes = {"kind": "shapes", "split": split, "start": START, "size": SCENES}
    data = scenes | texts
    if images:
        data = {"kind": "wrong_images", "of": data, "pictures": images}
    config.data = (data,)
    config.batch_size, config.rerank = 100, 16
    config.tokenizer = "python"
    if task != "retrieval":
        config.decoding.num_beams = 1
        config.decoding.max_new_tokens = 6 if task == "vqa" else 28
    return config.lock()

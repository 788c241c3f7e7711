"""blip2-jax evaluate --config eval/daquar_vqa:vqa=RUN

The 5,673 test questions of DAQUAR, each with one answer: exact match after the official
normalisation. `...:blank,vqa=RUN` and `...:shuffled,vqa=RUN` show no photos, or other
photos than those that the questions are about. Paths as in `daquar_vqa.py`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs.daquar_vqa import questions, read_paths
from blip2_jax.evaluation.eval_config import default_evaluation

PICTURES = ("blank", "shuffled")


def get_config(words: str = "") -> ConfigDict:
    """The evaluation's configuration."""
    pictures, _, rest = words.partition(",")
    if pictures not in PICTURES:
        pictures, rest = "", words
    path = read_paths(rest)
    config = default_evaluation("vqa").unlock()
    config.model = path["vqa"]
    test = questions(path, "test")
    if pictures:
        test = {"kind": "wrong_images", "of": test, "pictures": pictures}
        config.out = f"{config.model}/evaluation_vqa_{pictures}.json"
        config.title = f"{config.model}, {pictures} photos"
    config.data = (test,)
    config.batch_size = 100
    config.decoding.num_beams = 1
    config.decoding.max_new_tokens = 8
    return config.lock()

"""blip2-jax evaluate --config eval/daquar_vqa:vqa=RUN

The 5,673 test questions of DAQUAR with one answer each: exact match after the official
normalisation. `eval/daquar_vqa:blank,vqa=RUN` and `eval/daquar_vqa:shuffled,vqa=RUN`
show blank photos, or photos other than those that the questions are about. The argument
gives the paths of `daquar_vqa` and `vqa=RUN`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs.daquar_vqa import parse_paths, questions
from blip2_jax.evaluation.eval_config import default_evaluation

WRONG_IMAGES = ("blank", "shuffled")


def get_config(argument: str = "") -> ConfigDict:
    """Build the configuration; `argument` is e.g. "blank,vqa=runs/x"."""
    images, _, rest = argument.partition(",")
    if images not in WRONG_IMAGES:
        images, rest = "", argument
    paths = parse_paths(rest)
    config = default_evaluation("vqa").unlock()
    config.model = paths["vqa"]
    data = questions(paths, "test")
    if images:
        data = {"kind": "wrong_images", "of": data, "pictures": images}
        config.out = f"{config.model}/evaluation_vqa_{images}.json"
        config.title = f"{config.model}, {images} photos"
    config.data = (data,)
    config.batch_size = 100
    config.decoding.num_beams = 1
    config.decoding.max_new_tokens = 8
    return config.lock()

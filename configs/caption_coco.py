"""python launch/train.py --config configs/caption_coco.py --workdir runs/coco_opt

COCO captions behind "a photo of" with the image encoder trained at 364 pixels, from a
stage-2 run (appendix, table 7): `caption_coco.py:flant5xl`, opt2.7b or opt6.7b.
`frozen` behind it leaves the image encoder as it was.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import fine_tunes, recipes


def get_config(words: str = "opt2.7b") -> ConfigDict:
    """The run's configuration."""
    language, vision = recipes.parse_variant(words, fine_tunes.TUNED, ("", "frozen"))
    config = fine_tunes.captioning(language)
    return (fine_tunes.freeze_vision(config) if vision else config).lock()

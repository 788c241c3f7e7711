"""python launch/train.py --config configs/retrieval_coco.py --workdir runs/coco

ITC, ITM and ITG on COCO with the image encoder trained at 364 pixels, from a stage-1
run (appendix, table 9): `retrieval_coco.py:vitl` or vitg. Behind it, `without_itg` is
table 6's other row (to be called runs/retrieval_vitg_without_itg for `configs/eval`),
`frozen` leaves the image encoder as it was.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import fine_tunes, recipes


def get_config(words: str = "vitg") -> ConfigDict:
    """The run's configuration."""
    name, itg, trained = recipes.parse_variant(
        words, tuple(recipes.VISION), ("", "without_itg"), ("", "frozen")
    )
    config = fine_tunes.retrieval(name, itg=not itg)
    return (fine_tunes.freeze_vision(config) if trained else config).lock()

"""python launch/train.py --config configs/vqa_v2.py:opt6.7b --workdir runs/vqa_opt6_7b

VQAv2 and Visual Genome questions with the image encoder trained at 490 pixels, the
question in the Q-Former and in the language model, from a stage-2 run that carries the
text branch of stage 1 (appendix, table 8): opt2.7b, opt6.7b or flant5xl. Behind it,
`train` leaves VQAv2's validation questions to evaluation, `frozen` the image encoder as
it was. `--config.model.question_in_qformer=False` asks the language model alone.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import fine_tunes, recipes


def get_config(words: str = "opt2.7b") -> ConfigDict:
    """The run's configuration."""
    language, split, vision = recipes.parse_variant(
        words, fine_tunes.TUNED, ("trainval", "train"), ("", "frozen")
    )
    config = fine_tunes.vqa(language, split)
    return (fine_tunes.freeze_vision(config) if vision else config).lock()

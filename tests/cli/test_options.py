"""What the tools share."""

import argparse
import dataclasses

from blip2_jax.cli.options import BESIDE, add_model_options, given_beside
from blip2_jax.training.open_model import ExtraWeights


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    return parser.parse_args(arguments)


def test_every_field_is_an_option():
    assert tuple(BESIDE) == tuple(
        field.name for field in dataclasses.fields(ExtraWeights)
    )
    assert ExtraWeights(**given_beside(parsed())) == ExtraWeights()
    given = parsed("--vision", "eva.pth", "--image_size", "364", "--which", "300")
    assert ExtraWeights(**given_beside(given)) == ExtraWeights(
        vision="eva.pth", image_size=364
    )
    assert given.which == 300

"""Options that open a model."""

import argparse
import dataclasses

from blip2_jax.cli.options import EXTRA_WEIGHTS, add_model_options, extra_weights
from blip2_jax.inference.load import ExtraWeights


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    return parser.parse_args(arguments)


def test_every_field_is_an_option():
    assert tuple(EXTRA_WEIGHTS) == tuple(
        field.name for field in dataclasses.fields(ExtraWeights)
    )
    assert ExtraWeights(**extra_weights(parsed())) == ExtraWeights()
    arguments = parsed("--vision", "eva.pth", "--image_size", "364", "--which", "300")
    assert ExtraWeights(**extra_weights(arguments)) == ExtraWeights(
        vision="eva.pth", image_size=364
    )
    assert arguments.which == 300

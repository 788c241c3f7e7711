"""What the tools share."""

import argparse
import dataclasses

from blip2_jax.command_line import BESIDE, add_model_options, given_beside
from blip2_jax.opening import Beside


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    return parser.parse_args(arguments)


def test_every_field_is_an_option():
    assert tuple(BESIDE) == tuple(field.name for field in dataclasses.fields(Beside))
    assert Beside(**given_beside(parsed())) == Beside()
    given = parsed("--vision", "eva.pth", "--image_size", "364", "--which", "300")
    assert Beside(**given_beside(given)) == Beside(vision="eva.pth", image_size=364)
    assert given.which == 300

"""Arguments that cannot be used are answered with the name and the value given."""

import numpy as np
import pytest

from blip2_jax.generation import DecodingConfig
from tests.support.public_models import photos, stage1, stage2

IMAGE = photos(1)[0]
NAN = float("nan")
SHORT = {"num_beams": 1, "max_new_tokens": 2}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", NAN, "a finite number"),
        ("temperature", "warm", "a finite number"),
        ("repetition_penalty", NAN, "a finite number"),
        ("repetition_penalty", None, "a finite number"),
        ("length_penalty", float("inf"), "a finite number"),
        ("top_p", NAN, "a finite number"),
        ("top_k", 2.5, "a whole number"),
        ("num_beams", True, "a whole number"),
        ("max_new_tokens", "3", "a whole number"),
        ("num_return_sequences", None, "a whole number"),
        ("sample", 3, "True or False"),
        ("sample", "yes", "True or False"),
        ("early_stopping", 0.5, "False, True or 'never'"),
    ],
)
def test_settings(name, value, expected):
    with pytest.raises(ValueError, match=f"{name}={value!r}: expected {expected}"):
        DecodingConfig(**{name: value})
    with pytest.raises(ValueError, match=f"{name}="):
        stage2().caption(IMAGE, **{name: value})


def test_numbers_of_numpy_are_settings():
    config = DecodingConfig(num_beams=np.int64(2), temperature=np.float32(0.5))
    assert stage2().caption(IMAGE, **SHORT | {"max_new_tokens": np.int32(2)})
    assert config.num_beams == 2


@pytest.mark.parametrize("seed", [2**70, -(2**64), 1.5, "0", None, True])
def test_seeds(seed):
    with pytest.raises(ValueError, match=r"seed=.*: expected a whole number of 64 bit"):
        stage2().caption(IMAGE, seed=seed)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: m.generate(IMAGE, None),
            TypeError,
            "prompts are a string or a list of strings, not NoneType",
        ),
        (lambda m: m.generate(IMAGE, 3), TypeError, "not int"),
        (lambda m: m.generate(IMAGE, ["a", 3]), TypeError, "strings, not int"),
        (lambda m: m.answer(IMAGE, {"b", "a"}), TypeError, "questions .*not set"),
        (lambda m: m.answer(IMAGE, {"b": 1}), TypeError, "questions .*not dict"),
        (
            lambda m: m.generate(IMAGE, "\ud800 hi"),
            ValueError,
            r"prompts contain '\\ud800 hi', whose character 0 is half of a surrogate",
        ),
        (
            lambda m: m.converse([IMAGE, IMAGE], ["x"], **SHORT),
            ValueError,
            r"one image, or several in one row \(\[\[a, b\]\]\), not 2 rows",
        ),
        *(
            (
                lambda m, template=template: m.answer(
                    IMAGE, "q", question_prompt=template
                ),
                ValueError,
                "question_prompt=.*: expected a text with {} in place",
            )
            for template in ("{x}", "why?", "{} {}", "{", "{0.x}", 3)
        ),
        (lambda m: m.answer(IMAGE, "q", history=[3]), TypeError, "history is pairs"),
        (lambda m: m.answer(IMAGE, "q", history="no"), TypeError, "history is pairs"),
        (
            lambda m: m.answer(IMAGE, "q", examples=[(IMAGE, "how many?")]),
            TypeError,
            "examples are triples",
        ),
        (
            lambda m: m.answer(IMAGE, ["q"], image_of=[0.5]),
            ValueError,
            r"image_of names image 0\.5",
        ),
    ],
)
def test_texts_and_images(call, error, message):
    with pytest.raises(error, match=message):
        call(stage2())


def test_texts_of_stage1():
    with pytest.raises(TypeError, match=r"texts are .* not NoneType"):
        stage1().match(IMAGE, None)

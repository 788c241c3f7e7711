"""The caption parser: extracted statements and their truth for a scene."""

import pytest

from blip2_jax.data.shapes.captions import captions, description, parse_caption
from blip2_jax.data.shapes.world import PLACES, Scene, Thing, scene

RING = ("small", "red", "ring")
STAR = ("large", "blue", "star")
SCENE = Scene((Thing(*RING, "top left"), Thing(*STAR, "top right")))


@pytest.mark.parametrize(
    "text",
    [
        "a small red ring at the top left and a large blue star at the top right",
        "top right a large blue star, top left small red ring",
        "there is a small red ring to the left of a large blue star",
        "large blue star right of small red ring",
        "A small red ring, a large blue star",
    ],
)
def test_true_captions(text):
    assert parse_caption(text).names(SCENE)
    assert parse_caption(text).describes(SCENE)


@pytest.mark.parametrize(
    "text",
    [
        "a small red ring at the top left and a large blue star at the bottom right",
        "small red ring right of large blue star",
        "top right a small red ring, top left a large blue star",
    ],
)
def test_correct_things_in_wrong_places(text):
    assert parse_caption(text).names(SCENE)
    assert not parse_caption(text).describes(SCENE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a small red ring",
        "a large red ring left of a large blue star",
        "small red ring, large blue star, small red ring",
        "small red ring, large blue star, small green cross",
        "red ring and blue star",
    ],
)
def test_wrong_things(text):
    assert not parse_caption(text).names(SCENE)


def test_places_before_and_after_things():
    after = parse_caption("a small red ring at the top left, large blue star top right")
    before = parse_caption(
        "top left a small red ring and at the top right a large blue star"
    )
    assert after == before
    assert after.places == ((RING, "top left"), (STAR, "top right"))


def test_relations_have_one_name():
    facts = parse_caption("small red ring over large blue star")
    assert facts.relations == ((RING, "above", STAR),)


def test_descriptions_name_everything_and_every_place():
    for index in range(40):
        facts, seen = parse_caption(description("train", index)), scene("train", index)
        assert facts.describes(seen)
        assert len(facts.places) == len(seen.things)


def test_captions_name_things_in_reading_order():
    for index in range(40):
        things = scene("train", index).things
        expected = sorted(things, key=lambda thing: (thing.row, thing.column))
        for text in captions("train", index):
            assert parse_caption(text).things == tuple(
                thing.triple for thing in expected
            )


def test_descriptions_name_things_in_any_order():
    orders = set()
    for index in range(80):
        things = {thing.triple: thing.place for thing in scene("train", index).things}
        named = [
            things[triple]
            for triple in parse_caption(description("train", index)).things
        ]
        orders.add(named == sorted(named, key=PLACES.index))
    assert orders == {True, False}

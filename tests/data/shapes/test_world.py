"""The shapes world: scenes are pure functions, held-out things never leak."""

import itertools
import re

import numpy as np
import pytest

from blip2_jax.data.shapes import world
from blip2_jax.data.shapes.captions import captions, parse_caption
from blip2_jax.data.shapes.questions import KINDS, questions
from blip2_jax.data.shapes.render import render
from blip2_jax.data.shapes.source import ShapesSource

COUNT = 800
NAME = re.compile(
    " ".join(f"({'|'.join(v)})" for v in (world.SIZES, world.COLORS, world.SHAPES))
    + r"\b"
)


def texts(split, index):
    """Return all texts of a scene: captions, questions and answers."""
    all_questions = questions(split, index)
    return captions(split, index) + [f"{q.text} {q.answer}" for q in all_questions]


def test_a_sixth_of_the_triples_is_held_out_and_every_pair_is_seen():
    assert len(world.HELD_OUT) == 16
    assert len(world.ALL_TRIPLES) == 96
    for attributes in itertools.combinations(range(3), 2):
        pairs = [
            {tuple(t[p] for p in attributes) for t in ts}
            for ts in (world.SEEN, world.ALL_TRIPLES)
        ]
        assert pairs[0] == pairs[1]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_training_has_no_held_out_things(split):
    for index in range(COUNT):
        assert not world.scene(split, index).triples & world.HELD_OUT
        for text in texts(split, index):
            assert not set(NAME.findall(text)) & world.HELD_OUT, text


def test_every_pair_of_attributes_occurs_in_training_scenes():
    seen = set().union(*(world.scene("train", i).triples for i in range(4 * COUNT)))
    assert seen == set(world.SEEN)


def test_every_held_out_scene_has_a_held_out_thing():
    for index in range(COUNT):
        assert world.scene("heldout", index).triples & world.HELD_OUT


@pytest.mark.parametrize("split", list(world.SPLITS))
def test_captions_distinguish_neighbouring_near_duplicates(split):
    size = world.SPLITS[split].group
    for number in range(40):
        members = world.scene_group(split, number)
        assert len(members) == size
        assert len({member.layout for member in members}) == size
        for one, member in enumerate(members):
            for text in captions(split, number * size + one):
                facts = parse_caption(text)
                assert facts.describes(member), text
                others = [m for m in members if m is not member]
                assert not any(facts.describes(other) for other in others), text


def test_scenes_and_texts_are_functions_of_their_number():
    world.scene_group.cache_clear()
    first = [world.scene("train", i) for i in range(20)], texts("train", 7)
    world.scene_group.cache_clear()
    again = [world.scene("train", i) for i in reversed(range(20))][::-1]
    assert (again, texts("train", 7)) == first


def test_the_splits_differ():
    layouts = [
        [world.scene(split, i).layout for i in range(8)] for split in world.SPLITS
    ]
    assert layouts[0] != layouts[1] != layouts[2]


def test_captions_match_one_of_a_hundred_held_out_scenes():
    scenes = [world.scene("heldout", i) for i in range(100)]
    for index in range(100):
        facts = parse_caption(captions("heldout", index, 1)[0])
        assert [s.layout for s in scenes if facts.describes(s)] == [
            scenes[index].layout
        ]


def test_answers_are_balanced():
    answers_by_kind = {kind: [] for kind in KINDS}
    for index in range(COUNT):
        for question in questions("train", index):
            answers_by_kind[question.kind].append(question.answer)
    for kind, answers in answers_by_kind.items():
        most = max(answers.count(a) for a in set(answers)) / len(answers)
        options = {"size": 2, "exists": 2, "relation": 2, "count": 4}.get(kind, 4)
        assert most < 1.5 / options, kind


def test_images_of_near_duplicates_differ():
    for number in range(20):
        drawn = [render(member) for member in world.scene_group("train", number)]
        assert all(d.shape == (64, 64, 3) and d.dtype == np.uint8 for d in drawn)
        for one, other in itertools.combinations(drawn, 2):
            assert (np.abs(one.astype(int) - other) > 30).any(axis=-1).sum() >= 8


def test_images_can_have_any_size():
    small, big = (render(world.scene("train", 3), size) for size in (64, 128))
    halved = big.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - small).mean() < 1.5


def test_source_refuses_incomplete_groups():
    source = ShapesSource("train", 40, "both", things=1)
    assert source.group_size == 4
    for index in range(40):
        record = source.record(index)
        assert all(len(parse_caption(text).things) == 1 for text in record.captions)
        assert record.questions
    with pytest.raises(ValueError, match="multiples of 4"):
        ShapesSource("train", 41)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        ShapesSource("test", 40)

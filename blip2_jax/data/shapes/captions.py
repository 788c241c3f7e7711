"""Captions of scenes in several wordings, and a parser that checks them.

`caption` writes a caption. `parse_caption` extracts the things, places and relations of
any caption as `CaptionFacts`, which can be compared with a scene.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable

import numpy as np

from blip2_jax.data.shapes.world import (
    COLORS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    Triple,
    get_split,
    has_relation,
    scene,
    scene_group,
)

WORDINGS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_RELATION_OF = {word: name for name, words in WORDINGS.items() for word in words}
_MAX_WORDS = 26  # four things and their places take at least 23
CaptionWriter = Callable[[list[Thing], np.random.Generator], str]


def captions(split: str, index: int, count: int = 5) -> list[str]:
    """Write captions of a scene, each of them false for its near-duplicates."""
    members = scene_group(split, index // get_split(split).group)
    member_index = index % len(members)
    rng = np.random.default_rng([1, get_split(split).number, index])
    others = [member for i, member in enumerate(members) if i != member_index]
    texts: list[str] = []
    while len(texts) < count:
        text = caption(members[member_index], rng)
        facts = parse_caption(text)
        if not any(facts.describes(other) for other in others):
            texts.append(text)
    return texts


def description(split: str, index: int) -> str:
    """Describe every thing of a scene and its place, in random order.

    The order is random so that a model has to search the text.
    """
    rng = np.random.default_rng([3, get_split(split).number, index])
    writer = (_by_places, _by_places_first)[rng.integers(2)]
    things = scene(split, index).things
    return _write_short(writer, [things[i] for i in rng.permutation(len(things))], rng)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write a caption: every thing with its place or its relation to the one before.

    The things are in reading order, row by row from the left.
    """
    writers = [_by_places, _by_places_first]
    if len(scene.things) > 1:
        writers.append(_by_relations)
    things = sorted(scene.things, key=lambda thing: (thing.row, thing.column))
    return _write_short(writers[rng.integers(len(writers))], things, rng)


def _write_short(
    writer: CaptionWriter, things: list[Thing], rng: np.random.Generator
) -> str:
    """Write until a text has at most `_MAX_WORDS` words."""
    while True:
        text = writer(things, rng)
        if _count_words(text) <= _MAX_WORDS:
            return text


def _count_words(text: str) -> int:
    return len(re.findall(r"\w+|,", text))


def _by_places(things: list[Thing], rng: np.random.Generator) -> str:
    """Write, e.g., "a small red ring at the top left and a large blue star at ..."."""
    at = (" at the ", " in the ", " ")[rng.integers(3)]
    start = ("there is ", "")[rng.integers(2)]
    article = "a " if start or rng.integers(2) else ""
    return start + _join([f"{_noun(t, article)}{at}{t.place}" for t in things], rng)


def _by_places_first(things: list[Thing], rng: np.random.Generator) -> str:
    """Write, e.g., "at the top left a small red ring, at the bottom right ..."."""
    at, article = (("at the ", "a "), ("", "a "), ("", ""))[rng.integers(3)]
    return _join([f"{at}{t.place} {_noun(t, article)}" for t in things], rng)


def _by_relations(things: list[Thing], rng: np.random.Generator) -> str:
    """Write, e.g., "a small red ring left of a large blue star above ..."."""
    article = ("a ", "")[rng.integers(2)]
    text = ("there is ", "")[rng.integers(2)] if article else ""
    text += _noun(things[0], article)
    for before, thing in itertools.pairwise(things):
        relations = [r for r in RELATIONS if has_relation(before, r, thing)]
        words = WORDINGS[relations[rng.integers(len(relations))]]
        text += f" {words[rng.integers(len(words))]} {_noun(thing, article)}"
    return text


def _noun(thing: Thing, article: str) -> str:
    return article + thing.name()


def _join(parts: list[str], rng: np.random.Generator) -> str:
    """Join with commas, or with commas and a last "and"."""
    if len(parts) > 1 and rng.integers(2):
        return ", ".join(parts[:-1]) + " and " + parts[-1]
    return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class CaptionFacts:
    """The statements of a caption.

    Attributes:
      things: the things it names, in order.
      places: (thing, place) of every stated place.
      relations: (thing, relation, other thing) of every stated relation.
    """

    things: tuple[Triple, ...]
    places: tuple[tuple[Triple, str], ...] = ()
    relations: tuple[tuple[Triple, str, Triple], ...] = ()

    def names(self, scene: Scene) -> bool:
        """Return True if it names exactly the scene's things, each of them once."""
        once = len(set(self.things)) == len(self.things)
        return once and frozenset(self.things) == scene.triples

    def describes(self, scene: Scene) -> bool:
        """Return True if its things, places and relations are all correct."""
        if not self.names(scene):
            return False
        at = {thing.triple: thing for thing in scene.things}
        return all(at[one].place == place for one, place in self.places) and all(
            has_relation(at[one], relation, at[other])
            for one, relation, other in self.relations
        )


def _choices(words: tuple[str, ...]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_ITEM = re.compile(
    rf"(?P<thing>\b({_choices(SIZES)}) ({_choices(COLORS)}) ({_choices(SHAPES)})\b)"
    rf"|(?P<relation>\b({_choices(tuple(_RELATION_OF))})\b)"
    rf"|(?P<place>\b({_choices(PLACES)})\b)"
)


def parse_caption(text: str) -> CaptionFacts:
    """Extract the statements of a caption and skip all other words.

    A place belongs to the thing before it, or to the thing after it if the caption
    begins with a place. Relations that are not between two things are dropped. A
    caption without things yields empty facts, which describe no scene.
    """
    items = [
        (str(match.lastgroup), match.group())
        for match in _ITEM.finditer(" ".join(text.lower().split()))
    ]
    things = tuple(_triple(words) for kind, words in items if kind == "thing")
    kinds = [kind for kind, _ in items]
    step = 1 if kinds[:1] == ["place"] else -1
    places, relations = [], []
    for position, (kind, words) in enumerate(items):
        neighbours = {
            side: _triple(items[position + side][1])
            for side in (-1, 1)
            if 0 <= position + side < len(items) and kinds[position + side] == "thing"
        }
        if kind == "place" and step in neighbours:
            places.append((neighbours[step], words))
        elif kind == "relation" and len(neighbours) == 2:
            relation = _RELATION_OF[words]
            relations.append((neighbours[-1], relation, neighbours[1]))
    return CaptionFacts(things, tuple(places), tuple(relations))


def _triple(words: str) -> Triple:
    size, color, shape = words.split()
    return size, color, shape

"""Captions of scenes in several wordings, and the reader that checks them.

`caption` writes; `parse_caption` takes any caption apart into the things it names and what it
says of their places and relations; `CaptionFacts` compares that with a scene.
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
# Four things with their places take 23 at least; 28 tokens with the marks.
_MAX_WORDS = 26
CaptionWriter = Callable[[list[Thing], np.random.Generator], str]


def captions(split: str, index: int, count: int = 5) -> list[str]:
    """The first `count` captions of a scene, each false of its near-duplicates."""
    members = scene_group(split, index // get_split(split).group)
    this = index % len(members)
    rng = np.random.default_rng([1, get_split(split).number, index])
    others = [member for position, member in enumerate(members) if position != this]
    found: list[str] = []
    while len(found) < count:
        text = caption(members[this], rng)
        facts = parse_caption(text)
        if not any(facts.describes(other) for other in others):
            found.append(text)
    return found


def description(split: str, index: int) -> str:
    """One text that says of every thing of a scene what it is and where it stands.

    The things come in any order: who reads it has to look things up.
    """
    rng = np.random.default_rng([3, get_split(split).number, index])
    writer = (_by_places, _by_places_first)[rng.integers(2)]
    things = scene(split, index).things
    return _short(writer, [things[i] for i in rng.permutation(len(things))], rng)


def caption(seen: Scene, rng: np.random.Generator) -> str:
    """One caption: every thing, with its place or its relation to the one before.

    The things come as one reads a page: from the left, the upper row first.
    """
    writers = [_by_places, _by_places_first]
    if len(seen.things) > 1:
        writers.append(_by_relations)
    things = sorted(seen.things, key=lambda thing: (thing.row, thing.column))
    return _short(writers[rng.integers(len(writers))], things, rng)


def _short(writer: CaptionWriter, things: list[Thing], rng: np.random.Generator) -> str:
    """What a writer makes of the things in few words."""
    while True:
        text = writer(things, rng)
        if _count_words(text) <= _MAX_WORDS:
            return text


def _count_words(text: str) -> int:
    return len(re.findall(r"\w+|,", text))


def _by_places(things: list[Thing], rng: np.random.Generator) -> str:
    """Such as "a small red ring at the top left and a large blue star at ..."."""
    at = (" at the ", " in the ", " ")[rng.integers(3)]
    start = ("there is ", "")[rng.integers(2)]
    article = "a " if start or rng.integers(2) else ""
    return start + _join([f"{_noun(t, article)}{at}{t.place}" for t in things], rng)


def _by_places_first(things: list[Thing], rng: np.random.Generator) -> str:
    """Such as "at the top left a small red ring, at the bottom right ..."."""
    at, article = (("at the ", "a "), ("", "a "), ("", ""))[rng.integers(3)]
    return _join([f"{at}{t.place} {_noun(t, article)}" for t in things], rng)


def _by_relations(things: list[Thing], rng: np.random.Generator) -> str:
    """A chain, such as "a small red ring left of a large blue star above ..."."""
    article = ("a ", "")[rng.integers(2)]
    text = ("there is ", "")[rng.integers(2)] if article else ""
    text += _noun(things[0], article)
    for before, thing in itertools.pairwise(things):
        true = [name for name in RELATIONS if has_relation(before, name, thing)]
        words = WORDINGS[true[rng.integers(len(true))]]
        text += f" {words[rng.integers(len(words))]} {_noun(thing, article)}"
    return text


def _noun(thing: Thing, article: str) -> str:
    return article + thing.name()


def _join(parts: list[str], rng: np.random.Generator) -> str:
    """Commas, or commas and a last "and"."""
    if len(parts) > 1 and rng.integers(2):
        return ", ".join(parts[:-1]) + " and " + parts[-1]
    return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class CaptionFacts:
    """What a caption says.

    Attributes:
      things: the triples it names, in order.
      places: what it says stands where.
      relations: what it says stands how to what.
    """

    things: tuple[Triple, ...]
    places: tuple[tuple[Triple, str], ...] = ()
    relations: tuple[tuple[Triple, str, Triple], ...] = ()

    def names(self, scene: Scene) -> bool:
        """All attributes right: exactly the scene's things, each named once."""
        once = len(set(self.things)) == len(self.things)
        return once and frozenset(self.things) == scene.triples

    def describes(self, scene: Scene) -> bool:
        """All attributes, and every place and relation it states, right."""
        if not self.names(scene):
            return False
        at = {thing.triple: thing for thing in scene.things}
        return all(at[one].place == place for one, place in self.places) and all(
            has_relation(at[one], how, at[other]) for one, how, other in self.relations
        )


def _choices(words: tuple[str, ...]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_ITEM = re.compile(
    rf"(?P<thing>\b({_choices(SIZES)}) ({_choices(COLORS)}) ({_choices(SHAPES)})\b)"
    rf"|(?P<relation>\b({_choices(tuple(_RELATION_OF))})\b)"
    rf"|(?P<place>\b({_choices(PLACES)})\b)"
)


def parse_caption(text: str) -> CaptionFacts:
    """Take a caption apart; words that are no thing, place or relation are skipped.

    A place belongs to the thing before it, or to the one after it in a caption that
    begins with a place. A relation stands between two things; one that does not is
    dropped. A caption without things gives empty facts, which describe no scene.
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
        near = {
            side: _triple(items[position + side][1])
            for side in (-1, 1)
            if 0 <= position + side < len(items) and kinds[position + side] == "thing"
        }
        if kind == "place" and step in near:
            places.append((near[step], words))
        elif kind == "relation" and len(near) == 2:
            relations.append((near[-1], _RELATION_OF[words], near[1]))
    return CaptionFacts(things, tuple(places), tuple(relations))


def _triple(words: str) -> Triple:
    size, color, shape = words.split()
    return size, color, shape

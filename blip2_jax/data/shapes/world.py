"""The world of coloured shapes: scenes as pure functions of (split, index).

A scene is a grey square divided into four places (top left, top right, bottom left,
bottom right). One to four of them hold a thing, which has a size, a colour and a shape.
Scenes form groups of near-duplicates: the first scene of a group is random, the others
differ from it in one attribute or in the places of two things.

One sixth of the (size, colour, shape) triples is held out. No scene or text of the
splits `train` and `validation` contains them, and every scene of the split `heldout`
has at least one. Every pair of attributes occurs in training, so that a model that
generalises compositionally can describe the held-out things.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

SIZES = ("small", "large")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLACES = ("top left", "top right", "bottom left", "bottom right")
RELATIONS = ("left of", "right of", "above", "below")

MAX_THINGS = 4
_ATTRIBUTES = (("size", SIZES), ("color", COLORS), ("shape", SHAPES))

Triple = tuple[str, str, str]  # size, colour, shape


def _held_out() -> frozenset[Triple]:
    """Choose the held-out triples: a third of the (colour, shape) pairs in one size.

    For each colour two shapes are held out, one of them small and one large; for each
    shape the held-out sizes alternate over the colours.
    """
    return frozenset(
        (SIZES[(s // 3 + c) % 2], color, shape)
        for c, color in enumerate(COLORS)
        for s, shape in enumerate(SHAPES)
        if (c + s) % 3 == 0
    )


ALL_TRIPLES: tuple[Triple, ...] = tuple(itertools.product(SIZES, COLORS, SHAPES))
HELD_OUT: frozenset[Triple] = _held_out()
SEEN: tuple[Triple, ...] = tuple(t for t in ALL_TRIPLES if t not in HELD_OUT)
_HELD_OUT_ORDER: tuple[Triple, ...] = tuple(t for t in ALL_TRIPLES if t in HELD_OUT)


@dataclasses.dataclass(frozen=True)
class Split:
    """Parameters of a split.

    Attributes:
      number: seed of the split.
      group: number of near-duplicates in a group.
      held_out: True: every scene has a held-out triple; False: no scene has one.
    """

    number: int
    group: int
    held_out: bool


SPLITS = {
    "train": Split(number=0, group=4, held_out=False),
    "validation": Split(number=1, group=2, held_out=False),
    "heldout": Split(number=2, group=2, held_out=True),
}


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object; `dx` and `dy` in [-1, 1] are its offset inside its quarter."""

    size: str
    color: str
    shape: str
    place: str
    dx: float = 0.0
    dy: float = 0.0

    @property
    def triple(self) -> Triple:
        """Size, colour and shape."""
        return (self.size, self.color, self.shape)

    @property
    def column(self) -> int:
        """0 on the left, 1 on the right."""
        return PLACES.index(self.place) % 2

    @property
    def row(self) -> int:
        """0 at the top, 1 at the bottom."""
        return PLACES.index(self.place) // 2

    def name(self) -> str:
        """Return the full name, e.g. "small red ring"."""
        return f"{self.size} {self.color} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """Things with different triples and places; `look` is the seed of the colours."""

    things: tuple[Thing, ...]
    look: int = 0

    @property
    def triples(self) -> frozenset[Triple]:
        """The triples of all things."""
        return frozenset(thing.triple for thing in self.things)

    @property
    def layout(self) -> frozenset[tuple[Triple, str]]:
        """Triples with their places; scenes of equal layout have the same captions."""
        return frozenset((thing.triple, thing.place) for thing in self.things)


def has_relation(one: Thing, relation: str, other: Thing) -> bool:
    """Return True if `one` stands in `relation` to `other`, by columns or rows."""
    match relation:
        case "left of":
            return one.column < other.column
        case "right of":
            return one.column > other.column
        case "above":
            return one.row < other.row
        case "below":
            return one.row > other.row
    raise ValueError(f"unknown relation {relation!r}; there are {RELATIONS}")


def get_split(name: str) -> Split:
    """Look up a split.

    Raises:
      ValueError: the split is unknown; the message lists all splits.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}; there are {', '.join(SPLITS)}")
    return SPLITS[name]


def scene(split: str, index: int) -> Scene:
    """Return the scene at `index` (>= 0) of `split`; equal on every machine."""
    members = scene_group(split, index // get_split(split).group)
    return members[index % len(members)]


@functools.lru_cache(maxsize=4096)
def scene_group(split: str, number: int) -> tuple[Scene, ...]:
    """Return a base scene and its near-duplicates, all with different layouts."""
    options = get_split(split)
    rng = np.random.default_rng([options.number, number])
    members = [_base_scene(options, number, rng)]
    while len(members) < options.group:
        variant = _vary(members[0], rng)
        layouts = {member.layout for member in members}
        if variant.layout not in layouts and _allowed(variant, options.held_out):
            members.append(variant)
    return tuple(members)


def _allowed(candidate: Scene, held_out: bool) -> bool:
    distinct = len(candidate.triples) == len(candidate.things)
    return distinct and bool(candidate.triples & HELD_OUT) == held_out


def _base_scene(options: Split, number: int, rng: np.random.Generator) -> Scene:
    """Draw a scene; counts 1 to 4 take turns, and so do the held-out triples."""
    count = 1 + number % MAX_THINGS
    triples = SEEN
    first: list[Triple] = []
    if options.held_out:
        triples = ALL_TRIPLES
        first = [_HELD_OUT_ORDER[(number // MAX_THINGS) % len(_HELD_OUT_ORDER)]]
    chosen = list(first)
    while len(chosen) < count:
        triple = triples[rng.integers(len(triples))]
        if triple not in chosen:
            chosen.append(triple)
    places = rng.permutation(len(PLACES))[:count]
    jitter = rng.uniform(-1.0, 1.0, (count, 2))
    things = tuple(
        Thing(*triple, PLACES[place], float(dx), float(dy))
        for triple, place, (dx, dy) in zip(chosen, places, jitter, strict=True)
    )
    return Scene(things, look=int(rng.integers(2**31)))


def _vary(base: Scene, rng: np.random.Generator) -> Scene:
    """Change an attribute (half of the time), swap an attribute, or move a thing.

    Shapes, which are hardest to see, change more often than sizes and colours together.
    """
    things = list(base.things)
    changed = int(rng.integers(len(things)))
    chance = rng.random()
    if chance < 0.5:
        name, values = _ATTRIBUTES[rng.choice(3, p=(0.2, 0.2, 0.6))]
        value: Any = values[rng.integers(len(values))]
        things[changed] = dataclasses.replace(things[changed], **{name: value})
    elif chance < 0.75 and len(things) > 1:
        other = (changed + 1 + int(rng.integers(len(things) - 1))) % len(things)
        name, _ = _ATTRIBUTES[rng.integers(3)]
        one, two = getattr(things[changed], name), getattr(things[other], name)
        things[changed] = dataclasses.replace(things[changed], **{name: two})
        things[other] = dataclasses.replace(things[other], **{name: one})
    else:
        target = PLACES[rng.integers(len(PLACES))]
        vacated = things[changed].place
        for position, thing in enumerate(things):
            if thing.place == target:
                things[position] = dataclasses.replace(thing, place=vacated)
        things[changed] = dataclasses.replace(things[changed], place=target)
    return dataclasses.replace(base, things=tuple(things))

"""Questions about a scene that cannot be answered by the most frequent answer.

The eight kinds take turns. Each question describes its thing so that exactly one thing
of the scene matches. Half of the yes/no questions have the answer yes, and a question
with the answer "no" is wrong in one attribute only.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from blip2_jax.data.shapes.world import (
    COLORS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    get_split,
    has_relation,
    scene,
)


@dataclasses.dataclass(frozen=True)
class SceneQuestion:
    """A question, its only correct answer, and its kind (a key of `KINDS`)."""

    text: str
    answer: str
    kind: str


def questions(split: str, index: int, count: int = 8) -> list[SceneQuestion]:
    """Ask `count` questions about a scene, the kinds in random order."""
    options = get_split(split)
    rng = np.random.default_rng([2, options.number, index])
    around = scene(split, index)
    result: list[SceneQuestion] = []
    for kind in itertools.cycle(rng.permutation(list(KINDS)).tolist()):
        question = KINDS[kind](around, rng, options.held_out)
        if question is not None:
            result.append(SceneQuestion(*question, kind))
        if len(result) == count:
            return result
    raise AssertionError("unreachable")


QuestionAnswer = tuple[str, str] | None  # None: the scene allows no such question


def _pick(things: tuple[Thing, ...], rng: np.random.Generator) -> Thing:
    return things[rng.integers(len(things))]


def _describe(
    thing: Thing, around: Scene, rng: np.random.Generator, without: str = ""
) -> str:
    """Describe a thing so that only it matches, without its attribute `without`."""
    shape = "thing" if without == "shape" else thing.shape
    size = "" if without == "size" else thing.size + " "
    color = "" if without == "color" else thing.color + " "
    options = [shape, size + shape, color + shape, size + color + shape]
    unique = [words for words in options if _matches_once(words, around)]
    if without:
        unique.append(f"thing at the {thing.place}")
    if not unique:
        raise AssertionError("the full name of a thing matches once")
    return unique[rng.integers(len(unique))]


def _matches_once(words: str, around: Scene) -> bool:
    attributes = set(words.split()) - {"thing"}
    return sum(attributes <= set(thing.triple) for thing in around.things) == 1


def _attribute(
    name: str,
) -> Callable[[Scene, np.random.Generator, bool], QuestionAnswer]:
    def ask(around: Scene, rng: np.random.Generator, held_out: bool) -> QuestionAnswer:
        thing = _pick(around.things, rng)
        words = _describe(thing, around, rng, without=name)
        return f"what {name} is the {words}?", getattr(thing, name)

    return ask


def _count(around: Scene, rng: np.random.Generator, held_out: bool) -> QuestionAnswer:
    if rng.integers(2):
        return "how many things are there?", str(len(around.things))
    size = SIZES[rng.integers(2)]
    number = sum(thing.size == size for thing in around.things)
    return f"how many {size} things are there?", str(number)


def _exists(around: Scene, rng: np.random.Generator, held_out: bool) -> QuestionAnswer:
    thing = _pick(around.things, rng)
    if rng.integers(2):
        return f"is there a {thing.name()}?", "yes"
    wrong = [
        triple
        for position, values in enumerate((SIZES, COLORS, SHAPES))
        for value in values
        for triple in [(*thing.triple[:position], value, *thing.triple[position + 1 :])]
        if triple not in around.triples and (held_out or triple not in HELD_OUT)
    ]
    if not wrong:
        return None
    return f"is there a {' '.join(wrong[rng.integers(len(wrong))])}?", "no"


def _place(around: Scene, rng: np.random.Generator, held_out: bool) -> QuestionAnswer:
    thing = _pick(around.things, rng)
    return f"where is the {_describe(thing, around, rng)}?", thing.place


def _neighbor(
    around: Scene, rng: np.random.Generator, held_out: bool
) -> QuestionAnswer:
    """Ask "what is left of the ...?" if exactly one thing is."""
    thing = _pick(around.things, rng)
    relation = RELATIONS[rng.integers(len(RELATIONS))]
    neighbors = [
        other for other in around.things if has_relation(other, relation, thing)
    ]
    if len(neighbors) != 1:
        return None
    return f"what is {relation} the {_describe(thing, around, rng)}?", neighbors[
        0
    ].name()


def _relation(
    around: Scene, rng: np.random.Generator, held_out: bool
) -> QuestionAnswer:
    """Ask "is the ... left of the ...?" about things in different columns (rows)."""
    if len(around.things) < 2:
        return None
    one, other = (around.things[i] for i in rng.permutation(len(around.things))[:2])
    axes = [
        pair
        for pair in (RELATIONS[:2], RELATIONS[2:])
        if any(has_relation(one, relation, other) for relation in pair)
    ]
    relation = axes[rng.integers(len(axes))][rng.integers(2)]
    answer = "yes" if has_relation(one, relation, other) else "no"
    words = [_describe(thing, around, rng) for thing in (one, other)]
    return f"is the {words[0]} {relation} the {words[1]}?", answer


KINDS: dict[str, Callable[[Scene, np.random.Generator, bool], QuestionAnswer]] = {
    "color": _attribute("color"),
    "shape": _attribute("shape"),
    "size": _attribute("size"),
    "count": _count,
    "exists": _exists,
    "place": _place,
    "neighbor": _neighbor,
    "relation": _relation,
}

"""Scores on the shapes world: retrieval, matching, captions and answers.

Every score can be taken with other pictures than the texts': blank ones, or those of
other scenes. What a model still gets right then, it knows from the texts alone.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray as Array

from blip2_jax.data.shapes.captions import captions, parse_caption
from blip2_jax.data.shapes.questions import SceneQuestion, questions
from blip2_jax.data.shapes.render import render
from blip2_jax.data.shapes.world import Scene, scene
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.nn.similarity import max_query_similarity

CAPTION_TOKENS = 28
ANSWER_TOKENS = 6
RERANKED = 16  # candidates that the matching head sees, of those nearest by ITC
PICTURES = ("right", "blank", "shuffled")


@dataclasses.dataclass(frozen=True)
class Exam:
    """Scenes with their pictures, one caption each, and questions.

    Neighbours (2k, 2k + 1) are near-duplicates.
    """

    scenes: tuple[Scene, ...]
    images: UInt8[Array, "images R R 3"]
    captions: tuple[str, ...]
    questions: tuple[tuple[SceneQuestion, ...], ...]

    def pictures(self, which: str) -> UInt8[Array, "images R R 3"]:
        """The pictures to show: the right ones, blank ones, or other scenes'.

        Raises:
          ValueError: `which` is none of `PICTURES`.
        """
        if which == "blank":
            return np.repeat(render(Scene(()))[None], len(self.images), axis=0)
        if which == "shuffled":
            return np.roll(self.images, len(self.images) // 2, axis=0)
        if which != "right":
            raise ValueError(f"pictures are {', '.join(PICTURES)}, not {which!r}")
        return self.images


def make_exam(
    split: str = "heldout", count: int = 100, per_scene: int = 6, start: int = 0
) -> Exam:
    """Scenes of a split from `start` (even) on, with `per_scene` questions each."""
    numbers = range(start, start + count)
    scenes = tuple(scene(split, index) for index in numbers)
    return Exam(
        scenes,
        np.stack([render(each) for each in scenes]),
        tuple(captions(split, index, 1)[0] for index in numbers),
        tuple(tuple(questions(split, index, per_scene)) for index in numbers),
    )


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Image-to-text retrieval among all captions of an exam.

    Attributes:
      similarity: of every image and caption, by ITC.
      order: the captions by ITC, the best of them put in order by ITM; best first.
      recall_itc, recall: share of images whose own caption stands first, by ITC
        alone and after the matching head.
    """

    similarity: Float[Array, "images images"]
    order: Int[Array, "images images"]
    recall_itc: float
    recall: float


def retrieve(model: Blip2Retriever, exam: Exam, which: str = "right") -> Retrieval:
    """Rank all captions for each picture, in the two steps of the paper (section 4.4).

    Args:
      model: of stage 1.
      exam: the scenes.
      which: pictures to show.
    """
    pictures, texts = exam.pictures(which), list(exam.captions)
    queries = model.features(pictures, mode="image")["image_embeds_proj"]
    words = model.features(texts=texts, mode="text")["text_embeds_proj"][:, 0]
    similarity = np.asarray(
        max_query_similarity(jnp.asarray(queries), jnp.asarray(words))
    )
    by_itc = np.argsort(-similarity, axis=1, kind="stable")
    best = by_itc[:, :RERANKED]
    pairs = model.match(
        np.repeat(pictures, best.shape[1], axis=0), [texts[j] for j in best.ravel()]
    )
    score = pairs.itm.reshape(best.shape)
    best = np.take_along_axis(best, np.argsort(-score, axis=1, kind="stable"), axis=1)
    order = np.concatenate([best, by_itc[:, RERANKED:]], axis=1)
    own = np.arange(len(texts))
    return Retrieval(
        similarity,
        order,
        float(np.mean(by_itc[:, 0] == own)),
        float(np.mean(order[:, 0] == own)),
    )


def matching_accuracy(model: Blip2Retriever, exam: Exam, which: str = "right") -> float:
    """Of the matching head: half of the pairs fit, half do not.

    A picture stands against its own caption twice, against its near-duplicate's, and
    against that of a scene far away.
    """
    pictures, count = exam.pictures(which), len(exam.captions)
    own = np.arange(count)
    asked = np.stack([own, own, own ^ 1, (own + count // 2 + 1) % count], axis=1)
    found = model.match(
        np.repeat(pictures, asked.shape[1], axis=0),
        [exam.captions[j] for j in asked.ravel()],
    )
    said = found.itm.reshape(asked.shape) > 0.5
    return float(np.mean(said == np.array([True, True, False, False])))


@dataclasses.dataclass(frozen=True)
class Captions:
    """What a model says of the pictures, and how much of it is right.

    Attributes:
      attributes: share of captions that name exactly the scene's things, with the
        right size, colour and shape each.
      everything: share of those whose places and relations are true as well.
    """

    texts: tuple[str, ...]
    attributes: float
    everything: float


def caption_scores(model: Blip2, exam: Exam, which: str = "right") -> Captions:
    """Caption all pictures, greedily, and read the captions back."""
    texts = model.caption(
        exam.pictures(which), num_beams=1, max_new_tokens=CAPTION_TOKENS
    )
    facts = [parse_caption(text) for text in texts]
    pairs = list(zip(facts, exam.scenes, strict=True))
    return Captions(
        tuple(texts),
        float(np.mean([fact.names(seen) for fact, seen in pairs])),
        float(np.mean([fact.describes(seen) for fact, seen in pairs])),
    )


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers scene by scene, and the share that is right: of all, and by kind."""

    texts: tuple[tuple[str, ...], ...]
    accuracy: float
    by_kind: dict[str, float]


def answer_scores(model: Blip2Generator, exam: Exam, which: str = "right") -> Answers:
    """Ask all questions; a right answer is the expected one, word for word."""
    counts = [len(asked) for asked in exam.questions]
    said = model.answer(
        np.repeat(exam.pictures(which), counts, axis=0),
        [question.text for asked in exam.questions for question in asked],
        num_beams=1,
        max_new_tokens=ANSWER_TOKENS,
    )
    ends = np.cumsum([0, *counts])
    return mark(exam, [said[ends[i] : ends[i + 1]] for i in range(len(exam.questions))])


def mark(exam: Exam, said: Sequence[Sequence[str]]) -> Answers:
    """Compare answers with those expected."""
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for asked, answers in zip(exam.questions, said, strict=True):
        for question, answer in zip(asked, answers, strict=True):
            right[question.kind].append(answer.strip() == question.answer)
    every = [each for kind in right.values() for each in kind]
    return Answers(
        tuple(tuple(answers) for answers in said),
        float(np.mean(every)),
        {kind: float(np.mean(values)) for kind, values in sorted(right.items())},
    )


@functools.cache
def common_answers(split: str = "train", count: int = 2000) -> Mapping[str, str]:
    """The most common answer to each kind of question, in `count` scenes of a split."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    for index in range(count):
        for question in questions(split, index):
            counts[question.kind][question.answer] += 1
    return {kind: answers.most_common(1)[0][0] for kind, answers in counts.items()}


def majority_answers(exam: Exam, count: int = 2000) -> Answers:
    """The baseline that looks at nothing: each kind's most common training answer."""
    common = common_answers(count=count)
    return mark(exam, [[common[q.kind] for q in asked] for asked in exam.questions])


def query_maps(
    model: Blip2, exam: Exam, count: int = 12
) -> Float[Array, "images Q grid grid"]:
    """Where each query looks in the first `count` pictures, over the patch grid.

    The share that goes to the class token is left out: a map's sum is at most 1.
    """
    patches = model.attention_maps(exam.images[:count])[..., 1:]
    side = round(patches.shape[-1] ** 0.5)
    return patches.reshape(*patches.shape[:-1], side, side)

"""Scores on the shapes world: retrieval, matching, captions and answers.

Every score can also be computed with blank images, or with those of other scenes: what
a model still gets right then, it knows from the texts alone.
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
RERANK_CANDIDATES = 16
CONDITIONS = ("right", "blank", "shuffled")


@dataclasses.dataclass(frozen=True)
class Exam:
    """Scenes with their images, one caption each, and questions.

    Scenes 2k and 2k + 1 are near-duplicates.
    """

    scenes: tuple[Scene, ...]
    images: UInt8[Array, "scenes side side 3"]
    captions: tuple[str, ...]
    questions: tuple[tuple[SceneQuestion, ...], ...]

    def images_for(self, condition: str) -> UInt8[Array, "scenes side side 3"]:
        """Return the right images, blank ones, or those of other scenes.

        Raises:
          ValueError: `condition` is none of `CONDITIONS`.
        """
        if condition == "blank":
            return np.repeat(render(Scene(()))[None], len(self.images), axis=0)
        if condition == "shuffled":
            return np.roll(self.images, len(self.images) // 2, axis=0)
        if condition != "right":
            known = ", ".join(CONDITIONS)
            raise ValueError(f"condition {condition!r}: there are {known}")
        return self.images


def make_exam(
    split: str = "heldout", count: int = 100, per_scene: int = 6, start: int = 0
) -> Exam:
    """Make an exam of `count` scenes of a split.

    Args:
      split: of the shapes world.
      count: number of scenes.
      per_scene: questions per scene.
      start: index of the first scene; even, so that near-duplicates stay together.
    """
    indices = range(start, start + count)
    scenes = tuple(scene(split, index) for index in indices)
    return Exam(
        scenes,
        np.stack([render(each) for each in scenes]),
        tuple(captions(split, index, 1)[0] for index in indices),
        tuple(tuple(questions(split, index, per_scene)) for index in indices),
    )


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
    """Image-to-text retrieval among all captions of an exam.

    Attributes:
      similarity: ITC similarity of every image and caption.
      order: captions of each image, best first: by ITC, its best re-ranked by ITM.
      recall_itc: share of images whose own caption is first by ITC alone.
      recall: share of images whose own caption is first after re-ranking.
    """

    similarity: Float[Array, "scenes scenes"]
    order: Int[Array, "scenes scenes"]
    recall_itc: float
    recall: float


def retrieval_exam(
    model: Blip2Retriever, exam: Exam, condition: str = "right"
) -> RetrievalResult:
    """Rank all captions for each image in two stages (section 4.4 of the paper).

    Args:
      model: of stage 1.
      exam: the scenes.
      condition: one of `CONDITIONS`.
    """
    images, texts = exam.images_for(condition), list(exam.captions)
    query_vectors = model.features(images, mode="image")["image_embeds_proj"]
    text_vectors = model.features(texts=texts, mode="text")["text_embeds_proj"][:, 0]
    similarity = np.asarray(
        max_query_similarity(jnp.asarray(query_vectors), jnp.asarray(text_vectors))
    )
    by_itc = np.argsort(-similarity, axis=1, kind="stable")
    best = by_itc[:, :RERANK_CANDIDATES]
    matches = model.match(
        np.repeat(images, best.shape[1], axis=0), [texts[j] for j in best.ravel()]
    )
    itm = matches.itm.reshape(best.shape)
    best = np.take_along_axis(best, np.argsort(-itm, axis=1, kind="stable"), axis=1)
    order = np.concatenate([best, by_itc[:, RERANK_CANDIDATES:]], axis=1)
    own = np.arange(len(texts))
    return RetrievalResult(
        similarity,
        order,
        float(np.mean(by_itc[:, 0] == own)),
        float(np.mean(order[:, 0] == own)),
    )


def matching_exam(model: Blip2Retriever, exam: Exam, condition: str = "right") -> float:
    """Compute the accuracy of the matching head; half of the pairs match.

    Each image is paired with its own caption twice, with its near-duplicate's, and with
    that of a distant scene.
    """
    images, count = exam.images_for(condition), len(exam.captions)
    own = np.arange(count)
    paired = np.stack([own, own, own ^ 1, (own + count // 2 + 1) % count], axis=1)
    matches = model.match(
        np.repeat(images, paired.shape[1], axis=0),
        [exam.captions[j] for j in paired.ravel()],
    )
    predicted = matches.itm.reshape(paired.shape) > 0.5
    return float(np.mean(predicted == np.array([True, True, False, False])))


@dataclasses.dataclass(frozen=True)
class CaptionResult:
    """Captions of the images, and how many are right.

    Attributes:
      texts: the captions.
      attributes: share of captions that name exactly the scene's things, each with its
        right size, colour and shape.
      everything: share of captions whose positions and relations are right as well.
    """

    texts: tuple[str, ...]
    attributes: float
    everything: float


def caption_exam(model: Blip2, exam: Exam, condition: str = "right") -> CaptionResult:
    """Caption all images greedily, and parse the captions."""
    texts = model.caption(
        exam.images_for(condition), num_beams=1, max_new_tokens=CAPTION_TOKENS
    )
    facts = [parse_caption(text) for text in texts]
    pairs = list(zip(facts, exam.scenes, strict=True))
    return CaptionResult(
        tuple(texts),
        float(np.mean([fact.names(seen) for fact, seen in pairs])),
        float(np.mean([fact.describes(seen) for fact, seen in pairs])),
    )


@dataclasses.dataclass(frozen=True)
class AnswerResult:
    """Answers by scene, and the share of right ones overall and by kind."""

    texts: tuple[tuple[str, ...], ...]
    accuracy: float
    by_kind: dict[str, float]


def answer_exam(
    model: Blip2Generator, exam: Exam, condition: str = "right"
) -> AnswerResult:
    """Ask all questions; an answer is right if it equals the expected one."""
    counts = [len(per_scene) for per_scene in exam.questions]
    answers = model.answer(
        np.repeat(exam.images_for(condition), counts, axis=0),
        [question.text for per_scene in exam.questions for question in per_scene],
        num_beams=1,
        max_new_tokens=ANSWER_TOKENS,
    )
    ends = np.cumsum([0, *counts])
    return score_answers(
        exam, [answers[ends[i] : ends[i + 1]] for i in range(len(exam.questions))]
    )


def score_answers(exam: Exam, answers: Sequence[Sequence[str]]) -> AnswerResult:
    """Compare answers with the expected ones.

    Args:
      exam: the questions.
      answers: by scene, one per question.
    """
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for scene_questions, scene_answers in zip(exam.questions, answers, strict=True):
        for question, answer in zip(scene_questions, scene_answers, strict=True):
            right[question.kind].append(answer.strip() == question.answer)
    everything = [each for kind in right.values() for each in kind]
    return AnswerResult(
        tuple(tuple(scene_answers) for scene_answers in answers),
        float(np.mean(everything)),
        {kind: float(np.mean(values)) for kind, values in sorted(right.items())},
    )


@functools.cache
def common_answers(split: str = "train", count: int = 2000) -> Mapping[str, str]:
    """Return the most common answer to each kind of question in `count` scenes."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    for index in range(count):
        for question in questions(split, index):
            counts[question.kind][question.answer] += 1
    return {kind: answers.most_common(1)[0][0] for kind, answers in counts.items()}


def majority_exam(exam: Exam, count: int = 2000) -> AnswerResult:
    """Answer every question with the most common training answer to its kind.

    Args:
      exam: the questions.
      count: training scenes in which answers are counted.
    """
    common = common_answers(count=count)
    return score_answers(
        exam, [[common[q.kind] for q in per_scene] for per_scene in exam.questions]
    )

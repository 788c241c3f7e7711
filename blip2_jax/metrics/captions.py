"""Caption metrics: BLEU, ROUGE-L, CIDEr, and with Java METEOR and SPICE.

All of them are pycocoevalcap's, the code of the COCO captioning server. What it calls
CIDEr is CIDEr-D. Its word weights come from the references of the evaluated set: score
a whole set at once, never a part of it (the CIDEr of a single image is 0). Parts of a
set that are reported separately (the domains of NoCaps) are scored as sets of their
own, with their own word weights, as the official code does when it is given a part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from blip2_jax.metrics.bleu import bleu_counts
from blip2_jax.metrics.java import (
    Captions,
    check_scores,
    java_errors,
    meteor_captions,
    split_with_java,
)
from blip2_jax.metrics.ptb_tokenizer import split_words

Tokenizer = Literal["auto", "java", "python"]

PYTHON_METRICS = ("bleu", "rouge_l", "cider")
JAVA_METRICS = ("meteor", "spice")
_NO_JAVA = "needs Java, and there is no `java` on the path"
_NO_MODELS = (
    "needs Stanford CoreNLP 3.6.0 in pycocoevalcap's spice/lib; "
    "`python -m pycocoevalcap.spice.get_stanford_models` loads it"
)


@dataclasses.dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions.

    Attributes:
      scores: "bleu_1" ... "bleu_4", "rouge_l", "cider", perhaps "meteor", "spice",
        times 100; of a part of the set: "cider_PART".
      tokenizer: "java" (the official one) or "python" (`ptb_tokenizer.split_words`).
      skipped: requested metrics that could not be computed, with the reason.
      per_image: for every image, the metrics whose score of the set is the mean over
        images: all but BLEU and METEOR.
      bleu_counts: for every image, the counts of `bleu.bleu_counts`.
    """

    scores: dict[str, float]
    tokenizer: str
    skipped: dict[str, str]
    per_image: dict[Any, dict[str, float]]
    bleu_counts: dict[Any, list[int]]

    def notice(self) -> str:
        """Say how this differs from a full official evaluation; "" if it does not."""
        lines = [f"{name}: not computed, {why}" for name, why in self.skipped.items()]
        if self.tokenizer == "python":
            lines.append(
                "words: split by this package, not by the official PTBTokenizer "
                "(Java); scores may differ in the first decimal"
            )
        return "\n".join(lines)


def caption_scores(
    captions: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    *,
    metrics: Sequence[str] = PYTHON_METRICS + JAVA_METRICS,
    tokenizer: Tokenizer = "auto",
    parts: Mapping[Any, str] | None = None,
) -> CaptionScores:
    """Score one caption per image against its references.

    Args:
      captions: by image.
      references: by image; images without a caption are ignored, as the official
        evaluation of a subset does.
      metrics: some of `PYTHON_METRICS` and `JAVA_METRICS`.
      tokenizer: "auto" is "java" if Java is installed, else "python".
      parts: the part of the set that each image belongs to; "" is no part.

    Raises:
      ValueError: there are no captions, an image has no references, or a metric is
        unknown.
      RuntimeError: the tokenizer is "java" and Java is not installed, or a Java program
        fails or does not return a row per caption.
    """
    unknown = set(metrics) - {*PYTHON_METRICS, *JAVA_METRICS}
    if unknown:
        raise ValueError(f"unknown caption metrics: {', '.join(sorted(unknown))}")
    if not captions:
        raise ValueError("there are no captions to score")
    if missing := [key for key in captions if not references.get(key)]:
        raise ValueError(
            f"{len(missing)} images have no references, first {missing[0]!r}"
        )
    tokenizer = _choose_tokenizer(tokenizer)
    split = split_with_java if tokenizer == "java" else _split_with_python
    split_captions = split({key: [caption] for key, caption in captions.items()})
    split_references = split({key: list(references[key]) for key in captions})
    reasons = {name: _missing(name) for name in metrics if name in JAVA_METRICS}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    scores: dict[str, float] = {}
    per_image: dict[Any, dict[str, float]] = {key: {} for key in captions}
    for suffix, keys in _sets(captions, parts or {}).items():
        part_references = {key: split_references[key] for key in keys}
        part_captions = {key: split_captions[key] for key in keys}
        for name in metrics:
            if name in skipped:
                continue
            of_set, of_images = _score(name, part_references, part_captions)
            scores |= {f"{n}{suffix}": value for n, value in of_set.items()}
            for key, value in of_images.items():
                per_image[key][f"{name}{suffix}"] = value
    counts = {
        key: bleu_counts(split_captions[key][0], split_references[key])
        for key in captions
    }
    return CaptionScores(scores, tokenizer, skipped, per_image, counts)


def _sets(
    captions: Mapping[Any, str], parts: Mapping[Any, str]
) -> dict[str, list[Any]]:
    """Return the images of the whole set ("") and of each part ("_PART")."""
    sets: dict[str, list[Any]] = {"": list(captions)}
    for key in captions:
        if part := parts.get(key, ""):
            sets.setdefault(f"_{part}", []).append(key)
    return sets


def _choose_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    if tokenizer not in ("auto", "java", "python"):
        raise ValueError(f"unknown tokenizer {tokenizer!r}: auto, java or python")
    has_java = shutil.which("java") is not None
    if tokenizer == "java" and not has_java:
        raise RuntimeError(f"the PTBTokenizer {_NO_JAVA}")
    if tokenizer == "auto":
        return "java" if has_java else "python"
    return tokenizer


def _split_with_python(captions: Captions) -> Captions:
    return {
        key: [split_words(caption) for caption in texts]
        for key, texts in captions.items()
    }


def _missing(metric: str) -> str:
    """Say why a Java metric cannot run here; "" if it can."""
    if shutil.which("java") is None:
        return _NO_JAVA
    if metric == "spice":
        spec = importlib.util.find_spec("pycocoevalcap")
        assert spec is not None and spec.submodule_search_locations
        library = pathlib.Path(spec.submodule_search_locations[0], "spice", "lib")
        if not list(library.glob("stanford-corenlp-3.6.0*.jar")):
            return _NO_MODELS
    return ""


def _score(
    metric: str, references: Captions, captions: Captions
) -> tuple[dict[str, float], dict[Any, float]]:
    """Compute a metric of a set, and of its images if the set's is their mean."""
    if metric in JAVA_METRICS:
        return _score_with_java(metric, references, captions)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocoevalcap prints
        score, per_image = _scorer(metric).compute_score(references, captions)
    if metric == "bleu":
        names = {f"bleu_{n}": 100 * float(value) for n, value in enumerate(score, 1)}
        return names, {}
    of_images = zip(captions, per_image, strict=True)
    return {metric: 100 * float(score)}, {k: 100 * float(v) for k, v in of_images}


def _score_with_java(
    metric: str, references: Captions, captions: Captions
) -> tuple[dict[str, float], dict[Any, float]]:
    """Compute METEOR or SPICE; see `_score`.

    Raises:
      RuntimeError: the program fails, or does not return a score per caption.
    """
    if metric == "meteor":
        references, captions = meteor_captions(references), meteor_captions(captions)
    with java_errors(metric.upper()):
        scorer = _scorer(metric)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                score, per_image = scorer.compute_score(references, captions)
        finally:
            _unlock(scorer)
        keys = list(captions)
        if metric == "spice":
            keys, per_image = sorted(keys), [part["All"]["f"] for part in per_image]
        check_scores(per_image, len(captions))
        check_scores([score], 1)
    if metric == "meteor":  # its score of a set is not the mean of its captions
        return {metric: 100 * float(score)}, {}
    of_images = zip(keys, per_image, strict=True)
    return {metric: 100 * float(score)}, {k: 100 * float(v) for k, v in of_images}


def _unlock(scorer: Any) -> None:
    """Release METEOR's lock, which an error leaves locked: its destructor waits."""
    lock = getattr(scorer, "lock", None)
    if lock is not None and lock.locked():
        lock.release()


def _scorer(metric: str) -> Any:
    if metric == "bleu":
        from pycocoevalcap.bleu.bleu import Bleu

        return Bleu(4)
    if metric == "rouge_l":
        from pycocoevalcap.rouge.rouge import Rouge

        return Rouge()
    if metric == "cider":
        from pycocoevalcap.cider.cider import Cider

        return Cider()
    if metric == "meteor":
        from pycocoevalcap.meteor.meteor import Meteor

        return Meteor()
    from pycocoevalcap.spice.spice import Spice

    return Spice()

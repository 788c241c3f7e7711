"""Caption metrics: BLEU, ROUGE-L, CIDEr, and METEOR and SPICE where Java is at hand.

All through pycocoevalcap, the COCO captioning server's code. "CIDEr" is what that
code calls CIDEr, which is CIDEr-D. Its word weights come from the references of the
evaluated set: score a whole set at once, never a part of it, never one image (= 0).
Parts of a set that are reported apart (the domains of NoCaps) are sets of their own,
with their own word weights, as they are when the official code is given a part.
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
from blip2_jax.metrics.ptb_tokenizer import split_words

Tokenizer = Literal["auto", "java", "python"]
Captions = dict[Any, list[str]]

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
      scores: "bleu_1" ... "bleu_4", "rouge_l", "cider", perhaps "meteor", "spice";
        times 100, as papers print them. Of a part of the set: "cider_PART".
      tokenizer: "java" (the official one) or "python" (`words.split_words`).
      skipped: metrics that were asked for and could not be computed, and why.
      each: for every image the scores whose mean over images is that of the set:
        all but BLEU and METEOR.
      bleu: for every image its `bleu.bleu_counts`.
    """

    scores: dict[str, float]
    tokenizer: str
    skipped: dict[str, str]
    each: dict[Any, dict[str, float]]
    bleu: dict[Any, list[int]]

    def notice(self) -> str:
        """What differs from a full official evaluation; "" if nothing does."""
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
    """Score one caption an image against its references.

    Args:
      captions: by image.
      references: by image; those of other images are ignored, as the official
        evaluation of a subset does.
      metrics: which of `PYTHON_METRICS` and `JAVA_METRICS`.
      tokenizer: "auto" is "java" where Java is found, else "python".
      parts: by image, the part of the set that it belongs to; "" belongs to none.

    Raises:
      ValueError: no captions, an image without references, an unknown metric.
      RuntimeError: "java" was asked for and is not there.
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
    split = _split_with_java if tokenizer == "java" else _split_with_python
    found = split({key: [caption] for key, caption in captions.items()})
    wanted = split({key: list(references[key]) for key in captions})
    reasons = {name: _lacking(name) for name in metrics if name in JAVA_METRICS}
    skipped = {name: why for name, why in reasons.items() if why}
    scores: dict[str, float] = {}
    each: dict[Any, dict[str, float]] = {key: {} for key in captions}
    for part, keys in _sets(captions, parts or {}).items():
        here = {key: wanted[key] for key in keys}, {key: found[key] for key in keys}
        for name in metrics:
            if name not in skipped:
                of_set, of_images = _score(name, *here)
                scores |= {f"{n}{part}": value for n, value in of_set.items()}
                for key, value in of_images.items():
                    each[key][f"{name}{part}"] = value
    counts = {key: bleu_counts(found[key][0], wanted[key]) for key in captions}
    return CaptionScores(scores, tokenizer, skipped, each, counts)


def _sets(
    captions: Mapping[Any, str], parts: Mapping[Any, str]
) -> dict[str, list[Any]]:
    """The images of the whole set, "", and of each part, "_PART"."""
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


def _split_with_java(captions: Captions) -> Captions:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = {
        key: [{"caption": caption} for caption in texts]
        for key, texts in captions.items()
    }
    return PTBTokenizer().tokenize(rows)


def _split_with_python(captions: Captions) -> Captions:
    return {
        key: [split_words(caption) for caption in texts]
        for key, texts in captions.items()
    }


def _lacking(metric: str) -> str:
    """Why a Java metric cannot run here; "" if it can."""
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
    """One metric of a set, by name, and of its images where the set's is their mean."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocoevalcap chats
        score, each = _scorer(metric).compute_score(references, captions)
    if metric == "bleu":
        names = {f"bleu_{n}": 100 * float(value) for n, value in enumerate(score, 1)}
        return names, {}
    if metric == "meteor":
        return {metric: 100 * float(score)}, {}
    keys = sorted(captions) if metric == "spice" else list(captions)
    if metric == "spice":
        each = [parts["All"]["f"] for parts in each]
    images = {key: 100 * float(value) for key, value in zip(keys, each, strict=True)}
    return {metric: 100 * float(score)}, images


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

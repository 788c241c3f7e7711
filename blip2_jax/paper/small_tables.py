"""The paper's tables in small: the trainings they compare, and the scores they show.

`launch/tables.py` trains and evaluates these models on the shapes world
(`configs/shapes_tables.py` names the trainings); `small_report` writes the tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class ScoreColumn:
    """A column: a score of an exam.

    Attributes:
      head: of the column.
      exam: the exam without the row's suffix.
      name: of the score; "{kind}" stands for the row's kind.
    """

    head: str
    exam: str
    name: str


@dataclasses.dataclass(frozen=True)
class RunRow:
    """A row: a training, evaluated in one way.

    Attributes:
      label: of the row.
      run: name of the training.
      exam_suffix: completes the columns' exams, e.g. "_blank".
      kind: completes the columns' score names, e.g. "itm".
    """

    label: str
    run: str
    exam_suffix: str = ""
    kind: str = "exact_match"


@dataclasses.dataclass(frozen=True)
class SmallTable:
    """A table, and the differences that the paper draws conclusions from.

    Attributes:
      title: of the table.
      lead: a sentence below the title.
      rows: trainings.
      columns: scores.
      pairs: labels of two rows; the difference is the second minus the first.
    """

    title: str
    lead: str
    rows: tuple[RunRow, ...]
    columns: tuple[ScoreColumn, ...]
    pairs: tuple[tuple[str, str], ...]


_QUESTIONS = (
    ScoreColumn("held-out", "questions_heldout", "{kind}"),
    ScoreColumn("seen things", "questions_validation", "{kind}"),
)
_GUESS = RunRow("most common answer to its kind of question", "opt", kind="guess")
_BASELINES = (
    _GUESS,
    RunRow("OPT, blank pictures", "opt", "_blank"),
    RunRow("OPT, other scenes' pictures", "opt", "_shuffled"),
    RunRow("T5, blank pictures", "t5", "_blank"),
    RunRow("T5, other scenes' pictures", "t5", "_shuffled"),
)
_CAPTIONS = tuple(
    ScoreColumn(f"{head}, {split}", f"captions_{exam}", name)
    for split, exam in (("held-out", "heldout"), ("seen", "validation"))
    for head, name in (
        ("CIDEr", "cider"),
        ("BLEU-4", "bleu_4"),
        ("all things right", "things"),
    )
)
_RECALLS = tuple(
    ScoreColumn(f"{label}@{k}", "retrieval_heldout", f"{{kind}}_{direction}_r{k}")
    for label, direction in (("TR", "i2t"), ("IR", "t2i"))
    for k in (1, 5)
)


def _searches(labels: Mapping[str, str]) -> tuple[RunRow, ...]:
    """Make two rows for each training: by ITC alone, and re-ranked."""
    return tuple(
        RunRow(f"{label}, {stage}", run, kind=kind)
        for run, label in labels.items()
        for stage, kind in (("ITC alone", "itc"), ("re-ranked", "itm"))
    )


TABLES = (
    SmallTable(
        title="Table 2: questions without training on questions",
        lead="Stage 2 saw captions alone. Share of right answers, in percent.",
        rows=(
            RunRow("OPT small, image encoder small", "small_opt_small"),
            RunRow("OPT small, image encoder large", "opt_small"),
            RunRow("OPT large, image encoder large", "opt"),
            RunRow("T5 small, image encoder small", "small_t5_small"),
            RunRow("T5 small, image encoder large", "t5_small"),
            RunRow("T5 large, image encoder large", "t5"),
            *_BASELINES,
        ),
        columns=_QUESTIONS,
        pairs=(
            ("OPT small, image encoder small", "OPT small, image encoder large"),
            ("OPT small, image encoder large", "OPT large, image encoder large"),
            ("T5 small, image encoder small", "T5 small, image encoder large"),
            ("T5 small, image encoder large", "T5 large, image encoder large"),
            ("OPT large, image encoder large", "T5 large, image encoder large"),
        ),
    ),
    SmallTable(
        title="Table 3: captions",
        lead="After a fine-tune on captions with the image encoder, and before it.",
        rows=(
            RunRow("OPT small, fine-tuned", "captions_opt_small"),
            RunRow("OPT large, fine-tuned", "captions_opt"),
            RunRow("T5 large, fine-tuned", "captions_t5"),
            RunRow("OPT large", "opt"),
            RunRow("T5 large", "t5"),
            RunRow("OPT large, fine-tuned, blank pictures", "captions_opt", "_blank"),
        ),
        columns=_CAPTIONS,
        pairs=(
            ("OPT large", "OPT large, fine-tuned"),
            ("T5 large", "T5 large, fine-tuned"),
            ("OPT small, fine-tuned", "OPT large, fine-tuned"),
            ("OPT large, fine-tuned", "T5 large, fine-tuned"),
        ),
    ),
    SmallTable(
        title="Table 4: questions after a fine-tune on questions",
        lead="The Q-Former reads the question too, the image encoder is trained.",
        rows=(
            RunRow("OPT, zero-shot", "opt"),
            RunRow("OPT, fine-tuned", "questions_opt"),
            RunRow("T5, zero-shot", "t5"),
            RunRow("T5, fine-tuned", "questions_t5"),
            _GUESS,
            RunRow("OPT, fine-tuned, blank pictures", "questions_opt", "_blank"),
            RunRow("T5, fine-tuned, blank pictures", "questions_t5", "_blank"),
        ),
        columns=_QUESTIONS,
        pairs=(
            ("OPT, zero-shot", "OPT, fine-tuned"),
            ("T5, zero-shot", "T5, fine-tuned"),
        ),
    ),
    SmallTable(
        title="Table 5: retrieval, with and without re-ranking",
        lead=(
            "TR: texts of an image, IR: images of a text; 200 held-out scenes with "
            "their near-duplicates, one caption each; the best 16 are re-ranked."
        ),
        rows=_searches(
            {
                "stage1_small": "image encoder small",
                "stage1": "image encoder large",
                "retrieval": "large, fine-tuned",
            }
        ),
        columns=_RECALLS,
        pairs=(
            ("image encoder small, ITC alone", "image encoder small, re-ranked"),
            ("image encoder large, ITC alone", "image encoder large, re-ranked"),
            ("large, fine-tuned, ITC alone", "large, fine-tuned, re-ranked"),
            ("image encoder small, re-ranked", "image encoder large, re-ranked"),
            ("image encoder large, re-ranked", "large, fine-tuned, re-ranked"),
        ),
    ),
    SmallTable(
        title="Table 6: the fine-tune for retrieval with and without ITG",
        lead="As table 5.",
        rows=_searches(
            {"retrieval_without_itg": "without ITG", "retrieval": "with ITG"}
        ),
        columns=_RECALLS,
        pairs=(
            ("without ITG, ITC alone", "with ITG, ITC alone"),
            ("without ITG, re-ranked", "with ITG, re-ranked"),
        ),
    ),
    SmallTable(
        title="Figure 5: the last points",
        lead="As table 2: stage 2 that begins from nothing, and from stage 1.",
        rows=(
            RunRow("OPT without stage 1", "opt_without_stage1"),
            RunRow("OPT with stage 1", "opt"),
            RunRow("T5 without stage 1", "t5_without_stage1"),
            RunRow("T5 with stage 1", "t5"),
        ),
        columns=_QUESTIONS,
        pairs=(
            ("OPT without stage 1", "OPT with stage 1"),
            ("T5 without stage 1", "T5 with stage 1"),
        ),
    ),
)

# Figure 5: the curves, by training.
CURVES = {
    "OPT with stage 1": "opt",
    "OPT without": "opt_without_stage1",
    "T5 with stage 1": "t5",
    "T5 without": "t5_without_stage1",
}

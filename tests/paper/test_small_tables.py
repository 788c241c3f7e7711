"""The paper's tables in small: their trainings exist, and their cells are right."""

import json

import pytest

from blip2_jax.configs import shapes_tables
from blip2_jax.configs.eval import shapes_tables as exam_configs
from blip2_jax.data.shapes.captions import captions
from blip2_jax.evaluation.examples import write_examples
from blip2_jax.evaluation.shapes_exam import common_answers
from blip2_jax.paper.small_report import (
    Records,
    as_markdown,
    figure5,
    majority_accuracy,
    make_table,
    mean_curves,
    share_naming_all_things,
)
from blip2_jax.paper.small_tables import CURVES, TABLES, RunRow, ScoreColumn, SmallTable


def write_answers(directory, seed, run, exam, rights):
    """Write the examples of right and wrong answers."""
    folder = directory / f"seed_{seed}" / run
    folder.mkdir(parents=True, exist_ok=True)
    examples = [
        {
            "unit": "question",
            "id": f"{n}/size/0",
            "key": f"heldout/{n}",
            "question": "what size is it?",
            "said": "small",
            "references": ["large"],
            "scores": {"exact_match": 100.0 * right},
        }
        for n, right in enumerate(rights)
    ]
    write_examples(folder / f"{exam}.examples.jsonl", examples)


SMALL = SmallTable(
    "a title",
    "a lead",
    (RunRow("A", "a"), RunRow("B", "b"), RunRow("B, blank", "b", "_blank")),
    (ScoreColumn("held-out", "questions_heldout", "{kind}"),),
    (("A", "B"),),
)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_every_cell_has_a_training_and_an_exam(table):
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)
    assert {label for pair in table.pairs for label in pair} <= set(labels)
    for row in table.rows:
        made = [exam.replace(",", "_") for exam in shapes_tables.exams(row.run)]
        for column in table.columns:
            exam = column.exam + row.exam_suffix
            heldout_alone = row.exam_suffix and "validation" in exam
            assert exam in made or heldout_alone, (row, column)


def test_every_training_has_a_place_and_its_exams_build():
    shown = {row.run for table in TABLES for row in table.rows} | set(CURVES.values())
    assert shown == set(shapes_tables.RUNS)
    for name, run in shapes_tables.RUNS.items():
        assert not run.source or run.source in shapes_tables.RUNS
        for exam in shapes_tables.exams(name):
            (data,) = exam_configs.get_config(exam).data
            assert data.get("pictures", "") in exam
            assert data.get("of", data)["split"] in exam


def test_no_exam_has_a_name_that_is_not_known():
    with pytest.raises(ValueError, match="no exam 'questions,test': choose"):
        exam_configs.get_config("questions,test")


def test_means_and_paired_differences_over_seeds(tmp_path):
    for seed, (a, b) in enumerate(
        [((1, 0, 0, 0), (1, 1, 0, 0)), ((1, 1, 0, 0), (1, 1, 1, 1))]
    ):
        write_answers(tmp_path, seed, "a", "questions_heldout", a)
        write_answers(tmp_path, seed, "b", "questions_heldout", b)
    scores, paired = make_table(SMALL, Records(tmp_path, 2))
    assert [row[0] for row in scores.rows] == ["A", "B", "B, blank"]
    assert scores.rows[0][1].startswith("37.5 [")
    assert scores.rows[1][1].startswith("75.0 [")
    assert scores.rows[2][1] == ""
    assert paired.rows[0][0] == "B less A"
    assert paired.rows[0][1].startswith("+37.5 [")
    assert paired.rows[0][1].endswith("(+25.0, +50.0)")


def test_a_seed_that_one_side_lacks_is_not_compared(tmp_path):
    write_answers(tmp_path, 0, "a", "questions_heldout", (0, 0))
    write_answers(tmp_path, 1, "a", "questions_heldout", (0, 1))
    write_answers(tmp_path, 1, "b", "questions_heldout", (1, 1))
    _, paired = make_table(SMALL, Records(tmp_path, 2))
    assert paired.rows[0][1].endswith("(+50.0)")


def test_a_caption_is_right_when_it_names_all_things():
    caption = captions("heldout", 4, 1)[0]
    example = {"id": 4, "key": "heldout/4", "references": [caption]}
    wrong = example | {"id": 5, "said": "a large red ring"}
    assert share_naming_all_things([example | {"said": caption}, wrong]).value() == 50


def test_a_guess_is_the_most_common_answer_to_the_kind_of_question():
    common = common_answers()
    ids = ("3/size/0", "3/count/1", "4/size/0")
    answers = (common["size"], common["count"], "huge")
    examples = [
        {"id": each, "references": [answer]}
        for each, answer in zip(ids, answers, strict=True)
    ]
    assert majority_accuracy(examples).value() == pytest.approx(200 / 3)


def test_figure_5_is_the_mean_of_the_seeds(tmp_path):
    for seed, values in enumerate([(40, 60), (50, 80)]):
        folder = tmp_path / f"seed_{seed}" / "opt"
        folder.mkdir(parents=True)
        lines = [
            {"step": 10 * n, "evaluation/exact_match": value}
            for n, value in enumerate(values, 1)
        ]
        lines.append({"step": 20, "loss": 1.0})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
    records = Records(tmp_path, 3)
    assert mean_curves(records) == {"OPT with stage 1": [(10, 45.0), (20, 70.0)]}
    image = figure5(records)
    assert (
        image.startswith("<svg xmlns=")
        and "OPT with stage 1 <tspan" in image
        and ">70</tspan>" in image
    )
    page = as_markdown(records)
    assert "| OPT with stage 1 | 45.0 | 70.0 |" in page
    assert all(table.title in page for table in TABLES)

"""Terminal output: width, alignment and headers of lines, evaluation blocks, paths."""

import math

import pytest

from blip2_jax.training.terminal import (
    HEADER_EVERY,
    MAX_WIDTH,
    MetricsTable,
    Terminal,
    format_block,
    format_number,
    shorten_path,
)

COMMON = {
    "grad_norm": 0.1405,
    "learning_rate": 1e-4,
    "images_per_second_per_chip": 1234.567,
    "seconds_per_step": 28.08,
    "data_wait_share": 0.001169,
    "peak_memory_gb": 78.321,
    "host_memory_gb": 0.96,
    "mfu": 0.4567,
    "broken_samples": 0.0,
}
TASKS = {
    "stage1": {
        "loss": 17.946,
        "loss_itc": 6.931,
        "loss_itm": 0.6931,
        "loss_itg": 10.326,
        "itm_accuracy": 2 / 3,
        "temperature": 0.07,
        "itm_prior_entropy": 0.6365,
    },
    "stage2": {"loss": 2.5, "loss_lm": 2.5, "tokens": 24_000.0},
    "contrast": {"loss": 4.1, "accuracy": 1.0, "temperature": 0.07},
    "language_model": {"loss": 4.1, "loss_lm": 4.1, "tokens": 1e6},
}


@pytest.mark.parametrize("task", TASKS)
def test_lines_are_aligned_and_fit(task):
    table, values = MetricsTable(250_000), TASKS[task] | COMMON
    header, first = table.format(1, values)
    (second,) = table.format(250_000, {k: v * 1.5 for k, v in values.items()})
    extremes = dict.fromkeys(values, -1.23456e-9), dict.fromkeys(values, math.nan)
    lines = [header, first, second]
    lines += [line for values in extremes for line in table.format(2, values)]
    assert {len(line) for line in lines} == {len(header)}
    assert len(header) <= MAX_WIDTH
    for column in header.split()[:-2]:  # numbers end where their header ends
        end = header.index(f" {column} ") + len(column) + 1 if column != "step" else 13
        assert first[end - 1] != " " and first[end] == " "


def test_a_header_is_repeated_and_follows_the_columns():
    table, values = MetricsTable(100), {"loss": 1.0}
    counts = [len(table.format(step, values)) for step in range(2 * HEADER_EVERY)]
    assert counts == ([2] + [1] * (HEADER_EVERY - 1)) * 2
    assert len(table.format(50, values | {"mfu": 0.5})) == 2
    assert len(table.format(51, values | {"mfu": 0.5})) == 1
    table.restart()
    assert len(table.format(52, values | {"mfu": 0.5})) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (17.9461, " 17.946"),
        (0.0, "  0.000"),
        (1.23e-4, "1.2e-04"),
        (123456.0, "1.2e+05"),
        (math.nan, "    nan"),
    ],
)
def test_numbers_keep_their_width(value, text):
    assert format_number(value, 7, 3) == text


def test_scores_are_a_block():
    scores = {f"itc_r{k}_{way}": k / 10 for way in ("image", "text") for k in (1, 5)}
    title, *lines = format_block("evaluation after step 5", scores)
    assert title == "evaluation after step 5"
    assert lines == [
        "  itc_r1_image  0.1    itc_r5_image  0.5    "
        "itc_r1_text   0.1    itc_r5_text   0.5"
    ]
    many = {f"a_long_name_of_score_{i}": i / 7 for i in range(9)}
    lines = format_block("", many)
    assert len(lines) > 2 and max(map(len, lines)) <= MAX_WIDTH
    assert format_block("nothing", {}) == ["nothing"]


def test_paths_are_relative_where_that_is_shorter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shorten_path(tmp_path / "runs" / "a") == "runs/a"
    assert shorten_path("/bin") == "/bin"


def test_without_a_terminal_there_are_lines_and_no_bar(capfd):
    output = Terminal(40)
    output.advance(1, 2.5)
    output.write_metrics(1, TASKS["stage2"] | COMMON | {"compile_seconds": 27.82})
    output.write_metrics(2, TASKS["stage2"] | COMMON | {"compile_seconds": 3.0})
    output.write_metrics(3, TASKS["stage2"] | COMMON | {"broken_samples": 2.0})
    with output.hide_bar():
        pass
    output.write_block("evaluation after step 2", {"cider": 0.5})
    output.write_line("finished")
    output.close()
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "compiled the training step in 27.8 s"
    assert lines[1].split()[:2] == ["step", "loss"]
    assert lines[2].split()[:2] == ["1/40", "2.500"]
    assert lines[3] == "compiled the training step for a new batch shape in 3.0 s"
    assert lines[5] == "broken samples replaced so far: 2"
    assert lines[7:] == ["evaluation after step 2", "  cider  0.5", "finished"]

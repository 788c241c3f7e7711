"""What all benchmarks share."""

import sys

import numpy as np
import pytest

from benchmarks import (
    generation,
    harness,
    image_pipeline,
    reranking,
    shared_inputs,
    stage1_step,
    stage2_step,
    startup,
)


def test_a_section_is_put_at_the_end_and_later_replaced():
    page = "# Speed\n\nAn introduction.\n"
    for number, name in enumerate(("One", "Two", "Three")):
        section = f"## {name}\n\nnumber {number}\n"
        added = harness.put_section(page, name, section)
        assert added == f"{page}\n{section}\n<!-- end -->\n"
        page = added
    changed = harness.put_section(page, "Two", "## Two\n\nnew\n")
    assert changed == page.replace("number 1", "new")
    assert harness.put_section(changed, "Two", "## Two\n\nnew\n") == changed


@pytest.mark.parametrize("title", ["One", "Two"])
def test_what_was_written_by_hand_stays(title):
    page = "".join(
        f"## {name}\n\nold {name}\n\n<!-- end -->\n\nWhy.\n\n### More\n\nText.\n{end}"
        for name, end in {"One": "\n", "Two": ""}.items()
    )
    changed = harness.put_section(page, title, f"## {title}\n\nnew\n")
    assert changed == page.replace(f"old {title}", "new")
    with pytest.raises(ValueError, match=f"'{title}' lacks the line <!-- end -->"):
        harness.put_section(page.replace("<!-- end -->\n\n", ""), title, "new\n")


def test_the_sections_of_the_page_say_what_may_be_replaced():
    titles = [
        *stage1_step.TITLES.values(),
        *map(stage2_step.title, stage2_step.LANGUAGE),
        generation.TITLE,
        reranking.TITLE,
        image_pipeline.TITLE,
        startup.TITLE,
    ]
    page = harness.PAGE.read_text()
    for title in titles:
        _, section = page.split(f"## {title}\n")
        measured, mark, _ = section.split("\n## ")[0].partition("\n<!-- end -->\n")
        assert mark and "    python -m benchmarks." in measured


def test_a_report_names_no_path_and_writes_its_section(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n")
    command = ["benchmarks/x.py", "--lavis", "/home/me/LAVIS", "--write"]
    monkeypatch.setattr(sys, "argv", command)
    options = harness.arguments("").parse_args(command[1:])
    table = harness.table(("", "s"), [["ours", 1]])
    harness.report(options, "Steps", "fp32.", table, page)
    printed = capsys.readouterr().out.rstrip()
    assert page.read_text() == f"# Speed\n\n{printed}\n\n<!-- end -->\n"
    assert "python -m benchmarks.x --lavis .../LAVIS\n" in page.read_text()
    assert "| ours | 1 |" in page.read_text()


def test_contestants_run_on_the_cpu_unless_told(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert harness.environment()["JAX_PLATFORMS"] == "cpu"
    assert harness.environment("cuda")["JAX_PLATFORMS"] == "cuda"


def test_rounds_have_a_default():
    rounds = lambda *words: harness.arguments("", rounds=3).parse_args(words).rounds
    assert (rounds(), rounds("--rounds", "7")) == (3, 7)
    with pytest.raises(TypeError):
        harness.arguments("", round=3)


def test_given_weights_are_functions_of_their_name():
    one = shared_inputs.weight("layer.0.weight", (3, 4))
    np.testing.assert_array_equal(one, shared_inputs.weight("layer.0.weight", (3, 4)))
    assert np.abs(one - shared_inputs.weight("layer.1.weight", (3, 4))).min() > 0
    assert abs(shared_inputs.weight("norm.weight", (500,)).mean() - 1) < 0.01
    assert shared_inputs.weight("temp", ()).shape == ()
    large = shared_inputs.weight("table", (shared_inputs.DRAWN // 100 + 1, 200))
    assert abs(large.std() - shared_inputs.STD) < 1e-4


def test_turns_alternate_and_the_second_call_of_each_but_the_first_counts():
    calls = []

    class Contestant:
        def __init__(self, name):
            self.name, self.seconds = name, iter([200, 100, 50, 3, 9, 1, 7, 2])

        def ask(self, method):
            calls.append(self.name)
            return next(self.seconds)

    two = [Contestant("a"), Contestant("b")]
    assert harness.take_turns(two, "step", 3) == {"a": 2, "b": 2}
    assert calls == ["a", "a", "b", "b"] * 4


def test_a_worker_that_ends_says_so(capfd):
    with (
        harness.Worker("ours", sys.executable, "ours", "nothing", {}, 1) as worker,
        pytest.raises(RuntimeError, match="ours ended in 'step'"),
    ):
        worker.ask("step")
    assert "KeyError" in capfd.readouterr().err

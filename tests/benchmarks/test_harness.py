"""What all benchmarks share."""

import sys

import numpy as np
import pytest

import given
import harness


def test_a_section_is_put_at_the_end_and_later_replaced():
    page = "# Speed\n\nAn introduction.\n\n## One\n\nfirst\n\n## Two\n\nsecond\n"
    added = harness.put_section(page, "Three", "## Three\n\nthird\n")
    assert added == page + "\n## Three\n\nthird\n"
    changed = harness.put_section(added, "One", "## One\n\nnew\n")
    assert changed == added.replace("first", "new")
    assert harness.put_section(changed, "One", "## One\n\nnew\n") == changed


def test_a_report_names_no_path_and_writes_its_section(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n")
    command = ["benchmarks/x.py", "--lavis", "/home/me/LAVIS", "--write"]
    monkeypatch.setattr(sys, "argv", command)
    options = harness.arguments("").parse_args(command[1:])
    table = harness.table(("", "s"), [["ours", 1]])
    harness.report(options, "Steps", "fp32.", table, page)
    assert page.read_text() == "# Speed\n\n" + capsys.readouterr().out.rstrip() + "\n"
    assert "python benchmarks/x.py --lavis .../LAVIS\n" in page.read_text()
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
    one = given.weight("layer.0.weight", (3, 4))
    np.testing.assert_array_equal(one, given.weight("layer.0.weight", (3, 4)))
    assert np.abs(one - given.weight("layer.1.weight", (3, 4))).min() > 0
    assert abs(given.weight("norm.weight", (500,)).mean() - 1) < 0.01
    assert given.weight("temp", ()).shape == ()
    large = given.weight("table", (given.DRAWN // 100 + 1, 200))
    assert abs(large.std() - given.STD) < 1e-4


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
        harness.Worker("ours", sys.executable, "ours.py", "nothing", {}, 1) as worker,
        pytest.raises(RuntimeError, match="ours ended in 'step'"),
    ):
        worker.ask("step")
    assert "KeyError" in capfd.readouterr().err

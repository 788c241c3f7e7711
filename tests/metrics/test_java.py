"""Rows agree with the Java programs, and a program that fails is an error."""

import os
import shutil
import stat

import pytest

from blip2_jax.metrics.captions import caption_scores
from blip2_jax.metrics.java import check_scores, meteor_captions, split_with_java

JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
LINE_BREAKS = ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029")


@JAVA
def test_line_breaks_in_captions_do_not_shift_rows():
    captions = {
        number: [f"a red{line_break}bus", f"the caption number {number}", ""]
        for number, line_break in enumerate(LINE_BREAKS)
    }
    captions["last"] = ["the last one"]
    assert split_with_java(captions) == {
        **{
            number: ["a red bus", f"the caption number {number}", ""]
            for number in range(len(LINE_BREAKS))
        },
        "last": ["the last one"],
    }


def test_a_caption_cannot_hold_the_separator_of_meteor():
    captions = {1: ["a dog ||| runs", "|||"], 2: ["two | men"]}
    assert meteor_captions(captions) == {1: ["a dog   runs", " "], 2: ["two | men"]}


BROKEN_JAVA = {
    "ends": "exit 1",
    "says nothing": "cat > /dev/null",
    "loses a line": 'for last; do :; done; head -n -1 "$last"',
    "repeats a line": 'for last; do :; done; head -n 1 "$last"; cat "$last"',
}


@pytest.fixture
def broken_java(tmp_path, monkeypatch, request):
    """Put a program called `java` first on the path."""
    program = tmp_path / "java"
    program.write_text(f"#!/bin/bash\n{BROKEN_JAVA[request.param]}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("broken_java", BROKEN_JAVA, indirect=True)
def test_a_tokenizer_that_fails_is_an_error(broken_java):
    references = {1: ["a dog", "the dog"], 2: ["two men"]}
    with pytest.raises(RuntimeError, match=r"the PTBTokenizer .* failed: .* every "):
        caption_scores({1: "a", 2: "b"}, references, metrics=(), tokenizer="java")


@pytest.mark.parametrize("broken_java", ["ends"], indirect=True)
def test_meteor_that_fails_is_an_error(broken_java):
    """Its destructor does not wait for ever either."""
    references = {1: ["a dog"], 2: ["two men"]}
    with pytest.raises(RuntimeError, match=r"METEOR .* failed"):
        caption_scores(
            {1: "a", 2: "b"}, references, metrics=("meteor",), tokenizer="python"
        )


def test_scores_are_one_finite_number_per_caption():
    check_scores([0.5, 1.0], 2)
    with pytest.raises(ValueError, match="1 scores for 2 captions"):
        check_scores([0.5], 2)
    with pytest.raises(ValueError, match="not a finite"):
        check_scores([0.5, float("nan")], 2)

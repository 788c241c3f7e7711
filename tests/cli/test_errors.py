"""Errors of every command: one line on stderr, an exit code, and no traceback."""

import argparse
import errno
import io
import subprocess
import sys

import numpy as np
import pytest

from blip2_jax.cli import errors
from blip2_jax.cli.errors import UsageError, describe_error
from blip2_jax.cli.main import COMMANDS, main
from blip2_jax.cli.options import CommandParser, run_command
from tests.support.processes import SUPPORT

TINY = f"{SUPPORT / 'tiny_experiment.py'}:stage1"


def run_raising(error, *argv):
    """Run a command that raises an error; returns the exit code."""

    def run(arguments: argparse.Namespace) -> int:
        raise error

    return run_command(CommandParser("test", ""), run, argv)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("no such thing"), 2, "no such thing"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left", "/a/b"), 1, "/a/b: No space left"),
        (FileNotFoundError("no file 'x'"), 1, "no file 'x'"),
        (ImportError("pip install spacy"), 1, "pip install spacy"),
        (MemoryError("40 GB"), 1, "out of memory; a smaller batch needs less: 40 GB"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
            1,
            "out of memory; a smaller batch needs less: RESOURCE_EXHAUSTED",
        ),
        (TypeError("two\nlines"), 1, "TypeError: two lines (unexpected; --debug shows"),
        (ZeroDivisionError(), 1, "ZeroDivisionError (unexpected; --debug shows"),
        (EOFError("cut"), 1, "EOFError: cut (unexpected"),
        (KeyError("name"), 1, "KeyError: name (unexpected"),
        (RecursionError("deep"), 1, "RecursionError: deep (unexpected"),
    ],
)
def test_one_line_and_an_exit_code(error, code, message, capsys):
    assert run_raising(error) == code
    text = capsys.readouterr().err
    assert text.startswith(f"error: {message}") and text.count("\n") == 1


def test_debug_raises_the_error():
    with pytest.raises(TypeError):
        run_raising(TypeError("x"), "--debug")


def caught(function, *arguments):
    with pytest.raises(Exception) as raised:
        function(*arguments)
    return raised.value


def test_messages_of_this_package_stand_alone_and_those_of_others_get_a_hint():
    from blip2_jax.data.dataclass_options import check_keys

    own = caught(check_keys, ["a"], ["b"], [], "data")
    assert describe_error(own) == "data has no key 'a'; its keys are b"
    other = caught(np.zeros(6).reshape, 4)
    assert describe_error(other).startswith("ValueError: cannot reshape")
    assert describe_error(other).endswith("(unexpected; --debug shows the traceback)")
    assert len(describe_error(caught(int, "9" * 3000 + "x"))) < 700


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """Make a working directory with files of wrong content."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("not what was expected\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "record.json").write_text('{"title": "t", "scores": {}, "digests": {}}')
    (tmp_path / "record.examples.jsonl").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "raises.py").write_text("def get_config():\n    return {}['x']\n")
    (tmp_path / "syntax.py").write_text("def get_config(:\n")
    (tmp_path / "objects.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text("{")
    return tmp_path


TRAIN = f"train --config.data.workers=0 --config {TINY}"
CAPTION = "caption --image text.txt --model"
BAD_COMMAND_LINES = f"""
2 train
2 train --config
2 train --config nothing --workdir run
2 train --config text.txt --workdir run
2 train --config shapes_stage1
2 train --config shapes_stage1 --workdir run --config.data.train[x].size=4
2 train --config shapes_stage1 --workdir run --config.optimizer.lr.x=4
2 train --config syntax.py --workdir run
1 train --config raises.py --workdir run
1 {TRAIN} --workdir text.txt
1 {TRAIN} --workdir run --config.seed=1180591620717411303424
1 {TRAIN} --workdir run --config.model.overrides.qformer.heads=0
1 {TRAIN} --workdir run --config.model.overrides.qformer.num_queries=0
1 {TRAIN} --workdir run --config.frozen=('(',)
1 {TRAIN} --workdir run --config.optimizer.rate_factors=((1,2),)
1 {TRAIN} --workdir run --config.init.from_run=empty
1 {TRAIN} --workdir run --config.frozen_sources.vision=text.txt
2 evaluate --modle x
2 evaluate --config eval/nothing
1 evaluate --model empty --task vqa
1 evaluate --model config --task vqa --data list.json
1 evaluate --model text.txt --task captioning --data list.json
1 evaluate --model empty --task captioning --data bytes.json
1 evaluate --model empty --task captioning --data empty
2 {CAPTION}
1 {CAPTION} empty
2 {CAPTION} empty --num_beams x
2 {CAPTION} empty --which bset
2 {CAPTION} empty --temperature 0
2 {CAPTION} empty --dialogue
1 caption --features text.txt --model empty
1 caption --features objects.npy --model empty
1 caption --features empty --model empty
2 caption --model empty --images empty
1 caption --model empty --images nothing --out x.csv
2 caption --model shapes --images empty --out x.csv --shard 2/2
2 score --model shapes --text a
2 score --model shapes --image shapes:0
2 score --model shapes --image shapes:0 --text_file empty.txt
1 score --model shapes --image shapes:0 --text_file nothing
1 score --model empty --image shapes:0 --text a
2 score --model shapes_stage1 --image shapes:0 --text a --question why
1 rank --model shapes --images empty --text a b
2 rank --model shapes --image shapes:0 --text a --top 0
2 prepare
1 prepare --data empty --out x
1 prepare --data text.txt --out x
2 capfilt --data empty --out x
1 capfilt --data list.json --captioner empty --ranker empty --out x
2 capfilt --data empty --captioner shapes --ranker shapes_stage1 --out x --keep 0
2 cache_features --data empty
1 cache_features --data empty --model empty --out x
2 cache_features --data list.json --model empty --out x --dtype int4
2 convert --model empty --to lavsi --out x
1 convert --model empty --to lavis --out x
1 convert --model text.txt --to blip2_jax --out x
1 convert --model config --to blip2_jax --out x
1 convert --model list.json --to blip2_jax --out x
2 plan --config shapes_stage1 --topology v9:2x2
2 plan --config shapes_stage1 --topology cpu:8 --mfu 2
2 plan --config shapes_stage1 --topology cpu:8 --sweep size
2 search
2 search --index nothing circle
2 serve
2 serve --model shapes --port 70000
2 web --max_queue 0
2 report
1 report text.txt
1 report record.json
1 report bytes.json
1 report empty
2 features --model shapes:vision --out x
1 features --model empty --out x --data list.json
1 features --model shapes:vision --out x --data empty
1 features --model shapes:vision --out empty --data list.json
2 demo --steps many
1 demo --workdir text.txt
2 tables --seeds x
2 tables --runs nothing
2 tables --one nothing
1 tables --workdir text.txt --report
2 train_vocabulary
2 train_vocabulary --out x --shapes --config shapes_stage1
1 train_vocabulary --out x nothing-*.tar
1 train_vocabulary --out x text.txt
1 compare_seeds record.json
1 report record.json list.json
1 compare_seeds text.txt
2 majority_baseline --train nothing --test eval/daquar_vqa
1 majority_baseline --train daquar_vqa --test eval/daquar_vqa
1 pack_tower --model empty --out x
1 pack_tower --model text.txt --out x
2 pack_tower --modle text.txt --out x
""".strip().splitlines()


@pytest.mark.parametrize("line", BAD_COMMAND_LINES)
def test_no_traceback(line, bad, capsys):
    code, *words = line.split(" ")
    assert main(words) == int(code)
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert not any("error" in line or "Traceback" in line for line in before)


def test_every_command_has_a_bad_command_line():
    assert {line.split(" ")[1] for line in BAD_COMMAND_LINES} == set(COMMANDS)


def test_texts_that_a_terminal_cannot_show_are_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)

    def run(arguments: argparse.Namespace) -> int:
        print("caf\xe9 \u2026")
        return 0

    assert run_command(CommandParser("test", ""), run, []) == 0
    assert terminal.buffer.getvalue() == b"caf\xe9 \\u2026\n"


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly():
    program = (
        "import sys; from blip2_jax.cli.options import CommandParser, run_command\n"
        "def run(arguments):\n"
        "    for number in range(100_000): print(number)\n"
        "    return 0\n"
        "sys.exit(run_command(CommandParser('test', ''), run, []))\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout.readline() == "0\n"
    command.stdout.close()
    assert command.wait() == errors.FAILURE
    assert command.stderr.read() == ""
    command.stderr.close()

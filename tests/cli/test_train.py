"""`blip2-jax train`: errors are one sentence and leave no files."""

import pytest

from blip2_jax.cli import train
from blip2_jax.cli.errors import UsageError
from tests.support.processes import SUPPORT

TINY = SUPPORT / "tiny_experiment.py"


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, (), "--config is missing"),
        (2, ("--config=/no/such.py", "--workdir=run"), "/no/such.py"),
        (
            2,
            (f"--config={TINY}", "--no_workdir"),
            "unknown option --no_workdir; did you mean '--workdir'?",
        ),
        (2, (f"--config={TINY}",), "--workdir is missing"),
        (2, ("--config.stpes=3",), "config has no key 'stpes'; did you mean 'steps'?"),
        (2, ("--config.optimizer.lr=3",), "'optimizer.lr'; there are accumulate, b1"),
        (2, ("--config.data.train[0].siez=3",), "did you mean 'size'?"),
        (2, ("--config.data.train[3].size=3",), "train has 1 entries"),
        (2, ("--config.data.train[x].size=3",), "train has 1 entries, from 0"),
        (2, ("--config.learning_rate=1",), "did you mean 'optimizer.learning_rate'"),
        (2, ("--config.steps=many",), "--config.steps=many"),
        (1, ("--config.steps=0",), "config.steps is 0; it must be 1 or more"),
        (1, ("--config.precision=half",), "config.precision is 'half'"),
        (
            1,
            ("--config.batch_size=12",),
            "batch size 12 does not divide over 8 devices",
        ),
        (1, ("--config.mesh.fsdp=3",), "8 devices"),
        (1, ("--config.model.preset=huge",), "unknown preset 'huge'"),
        (1, ("--config.data.tokenizer.qformer=/no/words",), "/no/words"),
        (1, ("--config.data.train[0].split=tset",), "unknown split 'tset'"),
        (1, ("--config.frozen_sources.vision=/no/w.safetensors",), "/no/w.safetensors"),
        (1, ("--config.frozen_sources.vision=",), "frozen_sources.vision is empty"),
        (1, ("--config.init.from_run=/no/run",), "/no/run"),
        (1, ("--config.replay=/no/negatives.jsonl",), "/no/negatives.jsonl"),
    ],
)
def test_one_sentence_and_nothing_written(tmp_path, capsys, code, arguments, message):
    run = tmp_path / "run"
    if arguments and arguments[0].startswith("--config."):
        arguments = (f"--config={TINY}", f"--workdir={run}", *arguments)
    assert train.main([*arguments]) == code
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ") and message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_debug_raises_the_error():
    with pytest.raises(UsageError):
        train.main([f"--config={TINY}", "--config.stpes=1", "--debug"])


def test_one_real_step_from_the_command_line(tmp_path, monkeypatch, capsys):
    from blip2_jax.training import tasks
    from tests.support import toy_task

    monkeypatch.setitem(tasks.TASKS, "stage1", toy_task.make_toy)
    run = tmp_path / "run"
    command = [f"--config={SUPPORT / 'toy_task.py'}", f"--workdir={run}"]
    assert train.main([*command, "--config.steps=3"]) == 0
    assert (run / "checkpoints" / "3").is_dir()
    assert "finished 3 steps" in capsys.readouterr().err
    assert train.main([*command, "--config.steps=4"]) == 1
    assert "steps (was 3, is 4)" in capsys.readouterr().err


def test_dry_run_shows_samples_and_writes_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main([f"--config={TINY}", "--dry_run"]) == 0
    assert "5. " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["dry_run.png"]

"""Files of hard negatives: a broken line is named, because that step would sample."""

import numpy as np
import pytest

from blip2_jax.parallel.files import FileFormatError
from blip2_jax.training import replay
from blip2_jax.training.setup import set_up
from blip2_jax.training.train_config import ConfigError
from tests.support.tiny_runs import tiny_config

LINE = '{"step": 1, "image": [1, 0], "text": [1, 0]}\n'


def test_negatives_are_read_by_step(tmp_path):
    path = tmp_path / "negatives.jsonl"
    path.write_text(LINE)
    negatives = replay.read(str(path))
    assert list(negatives) == [1]
    np.testing.assert_array_equal(negatives[1].image, [1, 0])


@pytest.mark.parametrize(
    "broken", ['{"step": 2, "im', "3", '{"step": 2}', '{"step": 2, "image": "a"}']
)
def test_a_broken_line_is_named(tmp_path, broken):
    path = tmp_path / "negatives.jsonl"
    path.write_text(LINE + broken)
    with pytest.raises(FileFormatError, match=r"negatives\.jsonl, line 2 "):
        replay.read(str(path))


@pytest.mark.parametrize(
    ("task", "steps", "rows", "match"),
    [
        ("stage1", 2, 8, r"has no negatives of step 3; .* steps 1 to 4$"),
        ("stage1", 4, 6, "has 6 image negatives of step 1; config.batch_size is 8"),
        ("stage2", 4, 8, "the task is 'stage2'; only stage1 has"),
    ],
)
def test_negatives_that_a_run_would_not_use(tmp_path, task, steps, rows, match):
    path = tmp_path / "negatives.jsonl"
    lists = f'"image": {list(range(rows))}, "text": {list(range(rows))}'
    path.write_text(
        "".join(f'{{"step": {step}, {lists}}}\n' for step in range(1, steps + 1))
    )
    config = tiny_config(task).unlock()
    config.steps, config.optimizer.warmup_steps = 4, 1
    config.replay = str(path)
    with pytest.raises(ConfigError, match=match):
        set_up(config.lock(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_continued_run_needs_the_negatives_of_the_steps_that_are_left():
    config = tiny_config("stage1").unlock()
    config.steps, config.replay = 4, "negatives.jsonl"
    rows = np.zeros(8, np.int32)
    negatives = {step: replay.Negatives(rows, rows) for step in (3, 4)}
    replay.check_replay(config, negatives, start=2)

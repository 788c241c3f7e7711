"""The metrics log: all sinks, continued runs, non-finite values."""

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blip2_jax.training.metrics_log import (
    MetricsLog,
    drop_after,
    read_metrics,
)


def test_lines_of_a_killed_run_are_dropped_after_its_checkpoint(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.write(step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed here
    log = MetricsLog(tmp_path, start_step=3)
    log.write(4, {"loss": 40.0})
    log.close()
    by_step = {line["step"]: line["loss"] for line in read_metrics(tmp_path)}
    assert by_step == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0}

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")][-1] == (4, 40.0)


def test_every_bit_of_a_float_is_kept_and_nan_is_valid_json(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 0.1 + 0.2, "bad": float("nan")})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 1, "loss": 0.1 + 0.2, "bad": None}


def test_a_missing_file_has_nothing_to_drop(tmp_path):
    drop_after(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []

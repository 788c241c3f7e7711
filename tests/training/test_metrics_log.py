"""The metrics log: all sinks, continued runs, non-finite values."""

import json

import pytest
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


BROKEN = {
    "nul": b"\0" * 300,
    "garbled": b"xxx",
    "no step": b'{"loss": 1.0}',
    "no object": b"3",
    "latin-1": b'{"step": 2, "note": "\xe9"}',
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_moved_and_reported_and_the_run_continues(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1, "loss": 0.1}', b'{"step": 2, "loss": 0.3}']
    path.write_bytes(b"\n".join([good[0], line, b"", good[1], b""]))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    log = MetricsLog(tmp_path, start_step=2)
    log.close()
    assert log.report == [
        "metrics.jsonl: 1 lines cannot be read; they were moved to metrics.broken"
    ]
    assert path.read_bytes() == b"\n".join([*good, b""])
    assert (tmp_path / "metrics.broken").read_bytes() == line + b"\n"
    assert drop_after(path, 2) == []


def test_a_last_line_without_its_end_is_repaired(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for torn, steps in ((b'{"step": 2}', [1, 2]), (b'{"step": 2, "lo', [1])):
        path.write_bytes(b'{"step": 1}\n' + torn)
        assert drop_after(path, 2) == []
        assert [line["step"] for line in read_metrics(tmp_path)] == steps
        assert path.read_bytes().endswith(b"}\n")

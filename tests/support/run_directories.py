"""Directories of runs with invented metrics and samples, made without training."""

import json
import math
import pathlib
import random
from typing import Any

from blip2_jax.data.sources.registry import build_source
from blip2_jax.training.train_config import to_plain
from tests.support.tiny_runs import tiny_config

DATA = {"kind": "shapes", "split": "heldout", "size": 12}
WRONG = ("a small red square", "there is a big blue circle above it", "a thing")


def write_run_directory(
    directory: pathlib.Path, steps: int = 400, seed: int = 0, until: int | None = None
) -> pathlib.Path:
    """Write the directory of a stage-2 run.

    Args:
      directory: directory of the run.
      steps: of its configuration.
      seed: of its noise.
      until: last logged step, of a run in progress.

    Returns:
      The directory.
    """
    directory.mkdir(parents=True)
    config = to_plain(tiny_config("stage2"))
    config |= {"steps": steps, "seed": seed, "log_every": 2}
    config["evaluation"] |= {"every": steps // 8, "sources": [DATA]}
    _write_json(directory / "config.json", config)
    _write_json(directory / "sources.json", SOURCES)
    end = until or steps
    noise = random.Random(seed)
    lines: list[dict[str, Any]] = []
    samples = []
    for step in range(2, end + 1, 2):
        lines.append({"step": step} | _metrics(step / steps, noise))
        if step % (steps // 8) == 0:
            lines.append({"step": step} | _scores(step / steps))
            samples.append({"step": step, "samples": _samples(step / steps)})
    _write_lines(directory / "metrics.jsonl", lines)
    _write_lines(directory / "samples.jsonl", samples)
    starts = [start | {"step": n * steps // 2} for n, start in enumerate(STARTS)]
    _write_lines(directory / "starts.jsonl", starts)
    _write_json(directory / "last_checkpoint.json", {"step": end})
    return directory


SOURCES = {
    "frozen": {
        "visual_encoder/patch/kernel": {"source": "shapes:vision", "shape": [3, 4]},
        "language_model/embeddings/word": {"source": "shapes:opt", "shape": [9, 4]},
    },
    "data": [{"name": "shapes:train", "records": 1600, "images": 1600}],
    "hub": {"facebook/opt-125m": "27dcfa74d334bc871f3234de431e71c6eeba5dd6"},
}
STARTS = tuple(
    {"version": "1.0", "jax": "0.10.2", "device": "1 cpu", "processes": 1, "date": date}
    for date in ("2026-01-01T10:00:00+00:00", "2026-01-01T12:30:00+00:00")
)


def _metrics(share: float, noise: random.Random) -> dict[str, float]:
    loss = 0.25 + 4.5 * math.exp(-7 * share) * noise.uniform(0.7, 1.3)
    warmup = min(1.0, share / 0.1)
    return {
        "loss": loss,
        "loss_lm": loss,
        "grad_norm": 0.4 + 6 * math.exp(-4 * share) * noise.uniform(0.5, 1.5),
        "learning_rate": 1e-3 * warmup * (0.55 + 0.45 * math.cos(math.pi * share)),
        "accuracy": 1 - math.exp(-4 * share) * noise.uniform(0.8, 1.0),
        "images_per_second_per_chip": noise.uniform(280, 320),
        "data_wait_share": noise.uniform(0.0, 0.02),
        "peak_memory_gb": 1.9,
        "broken_samples": 0.0,
        "source/shapes:train/rows": 1600 * share,
    }


def _scores(share: float) -> dict[str, float]:
    return {
        "evaluation/bleu_4": 62 * (1 - math.exp(-5 * share)),
        "evaluation/cider": 410 * (1 - math.exp(-3 * share)),
        "evaluation/rouge_l": 88 * (1 - math.exp(-6 * share)),
    }


def _samples(share: float) -> list[dict[str, Any]]:
    source = build_source(DATA)
    samples = []
    for index in range(4):
        record = source.record(index)
        wrong = WRONG[index % len(WRONG)]
        said = record.captions[0] if share * 4 > index + 0.5 else wrong
        samples.append(
            {
                "unit": "image",
                "id": index,
                "key": record.key,
                "said": said,
                "references": list(record.captions),
                "scores": {},
            }
        )
    return samples


def _write_json(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _write_lines(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

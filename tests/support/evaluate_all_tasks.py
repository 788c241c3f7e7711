"""Run `blip2-jax evaluate` several times in each process of a test.

Arguments: directory of runs and data, where to write, then batch sizes.
"""

import json
import sys

from blip2_jax.cli.evaluate import main
from blip2_jax.parallel import hosts

TASKS = {"retrieval": "stage1", "captioning": "stage2", "vqa": "stage2"}


def evaluate_all(place, out, *sizes):
    """Every task with every batch size; the second is spread over four devices."""
    data = {"kind": "annotations", "path": f"{place}/all.jsonl", "images": f"{place}"}
    for number, size in enumerate(sizes):
        for task, run in TASKS.items():
            arguments = [
                "--model",
                f"{place}/{run}",
                "--task",
                task,
                "--data",
                json.dumps(data),
                "--out",
                f"{out}/{task}_{size}.json",
                f"--config.batch_size={size}",
                "--config.rerank=3",
                "--config.decoding.max_new_tokens=4",
                "--config.decoding.num_beams=2",
                "--config.tokenizer=python",
                "--config.bootstrap.samples=20",
                *(["--config.mesh.data=-1"] if number else []),
            ]
            assert main(arguments) == 0


if __name__ == "__main__":
    hosts.join()
    evaluate_all(*sys.argv[1:])

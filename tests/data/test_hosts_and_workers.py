"""Two hosts with four workers each read an epoch once, and another cluster goes on."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.support.generated_data import bert_directory, tars_spec

ROOT = pathlib.Path(__file__).parents[2]
IMAGES, BATCH, STEPS = 40, 8, 20  # four epochs
# Writes a line for each step: its number, and image id and digest of every own row.
READ = f"""
import hashlib, json, sys, time
from blip2_jax.data.pipeline import training_batches
if __name__ == "__main__":
    options, rows, start, path = map(json.loads, sys.argv[1:])
    stream = training_batches(
        options, "image_text", batch_size={BATCH}, seed=1, own_rows=rows,
        start_step=start,
    )
    with open(path, "w", buffering=1) as file:
        for step in range(start, {STEPS}):
            batch = next(stream)
            digests = [
                hashlib.sha256(image.tobytes() + ids.tobytes()).hexdigest()
                for image, ids in zip(batch["image"], batch["text_ids"])
            ]
            ids = batch["image_id"].tolist()
            print(json.dumps([step, list(zip(ids, digests))]), file=file)
            time.sleep(0.05)
    stream.close()
"""


@pytest.fixture(params=["local", "s3"])
def source(request, tmp_path):
    """Return the spec of tars in a directory or on an object store."""
    (tmp_path / "data").mkdir()
    spec = tars_spec(tmp_path / "data", IMAGES)
    if request.param == "s3":
        bucket = request.getfixturevalue("s3")
        spec["paths"] = f"{bucket.put(tmp_path / 'data', 'data')}/0*.tar"
    return spec


@pytest.mark.slow
def test_hosts_share_epochs_and_other_hosts_continue(source, tmp_path):
    options = {
        "train": [source],
        "image": {"size": 24},
        "tokenizer": {"qformer": bert_directory(tmp_path / "bert")},
        "max_text_length": 12,
    }

    def read(hosts, workers, start=0):
        """Start a process for each host; returns them and their files."""
        share = BATCH // hosts
        files = [tmp_path / f"{start}_{hosts}_{host}.jsonl" for host in range(hosts)]
        processes = []
        for host, path in enumerate(files):
            rows = list(range(host * share, (host + 1) * share))
            arguments = ({**options, "workers": workers}, rows, start, str(path))
            command = [sys.executable, "-c", READ, *map(json.dumps, arguments)]
            processes.append(
                subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
            )
        return processes, files

    whole = finish(*read(hosts=1, workers=0))
    assert sorted(whole) == list(range(STEPS))
    for epoch in range(STEPS * BATCH // IMAGES):
        steps = range(epoch * IMAGES // BATCH, (epoch + 1) * IMAGES // BATCH)
        images = [image for step in steps for image, _ in whole[step]]
        assert sorted(images) == list(range(IMAGES))

    processes, files = read(hosts=2, workers=4)
    deadline = time.monotonic() + 120
    while any(len(lines(path)) < 7 for path in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.wait()
    joined = join(files)
    assert 7 <= len(joined) < STEPS
    assert joined == {step: whole[step] for step in joined}

    rest = finish(*read(hosts=4, workers=1, start=len(joined)))
    assert joined | rest == whole


def lines(path):
    """Return the steps that a host has written: number to rows."""
    if not path.exists():
        return {}
    whole_lines = path.read_text().split("\n")[:-1]
    return {step: rows for step, rows in map(json.loads, whole_lines)}


def join(files):
    """Return the rows of all hosts, for the steps that all have written."""
    parts = [lines(path) for path in files]
    steps = set(parts[0]).intersection(*parts)
    return {
        step: list(itertools.chain.from_iterable(part[step] for part in parts))
        for step in sorted(steps)
    }


def finish(processes, files):
    """Wait for the hosts and return the rows of all their steps."""
    assert [process.wait(300) for process in processes] == [0] * len(processes)
    return join(files)

"""Workers with a small /dev/shm give the same batches, or the reason of their death."""

import errno
import hashlib
import itertools
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from blip2_jax.data import shared_memory
from blip2_jax.data.pipeline import training_batches

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = {
    "train": [{"kind": "shapes", "split": "train", "size": 100}],
    "tokenizer": {"qformer": "shapes:bert"},
    "max_text_length": 16,
    "image": {"size": 64},
}
SMALL = "mount -t tmpfs -o size=1m tmpfs /dev/shm"

SCRIPT = """
import hashlib, sys, threading, time
from blip2_jax.data.pipeline import training_batches
from tests.data.test_shared_memory import OPTIONS

def keep_full():
    # Take every byte of /dev/shm as soon as it is free.
    with open("/dev/shm/filler", "wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                time.sleep(1e-4)

if __name__ == "__main__":
    rows = int(sys.argv[1])
    options = {**OPTIONS, "workers": 1}
    stream = training_batches(options, "image_text", seed=0, batch_size=rows)
    if sys.argv[2] != "take":
        next(stream)
        threading.Thread(target=keep_full, daemon=True).start()
    try:
        for _ in range(3 if sys.argv[2] == "take" else 1000):
            print(hashlib.sha256(next(stream)["image"].tobytes()).hexdigest())
    except RuntimeError as error:
        print(error)
    stream.close()
"""


def run_with_small_memory(tmp_path, rows, action):
    """Run the script in a mount namespace with 1 MB of /dev/shm."""
    command = ["unshare", "-m", "bash", "-c"]
    mounts = (
        shutil.which("unshare")
        and not subprocess.run(
            [*command, SMALL], capture_output=True, check=False
        ).returncode
    )
    if not mounts:
        pytest.skip("no permission to mount a small /dev/shm")
    (tmp_path / "script.py").write_text(SCRIPT)
    call = f"{SMALL} && {sys.executable} {tmp_path}/script.py {rows} {action}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, call], capture_output=True, text=True, env=environment, check=True
    )


def digests_of(rows):
    stream = training_batches(OPTIONS, "image_text", seed=0, batch_size=rows)
    batches = list(itertools.islice(stream, 3))
    stream.close()
    return [hashlib.sha256(batch["image"].tobytes()).hexdigest() for batch in batches]


def test_batches_larger_than_shared_memory_go_through_pipes(tmp_path):
    result = run_with_small_memory(tmp_path, 100, "take")  # 1.2 MB each
    assert result.stdout.split() == digests_of(100)
    assert "/dev/shm has 1 MB free, but 1 workers need 7 MB" in result.stderr


def test_a_worker_that_dies_of_full_shared_memory_says_so(tmp_path):
    result = run_with_small_memory(tmp_path, 10, "fill")
    assert "cannot write to /dev/shm, which is full (0 MB are free)" in result.stdout
    assert "data.workers=0" in result.stdout


def test_pipes_and_shared_memory_give_the_same_batches(monkeypatch, caplog):
    streams = []
    for free in (None, 10**12, 1000):
        monkeypatch.setattr(shared_memory, "free_shared_memory", lambda n=free: n)
        options = {**OPTIONS, "workers": 1}
        stream = training_batches(options, "image_text", seed=0, batch_size=4)
        streams.append(list(itertools.islice(stream, 2)))
        stream.close()
        assert ("through pipes" in caplog.text) == (free == 1000)
    for other in streams[1:]:
        for one, two in zip(streams[0], other, strict=True):
            np.testing.assert_array_equal(one["image"], two["image"])
            np.testing.assert_array_equal(one["text_ids"], two["text_ids"])


def test_other_errors_of_workers_stay_as_they_are():
    error = RuntimeError("Worker process was terminated with exit code -9.")
    assert shared_memory.explain_worker_error(error) is error
    full = shared_memory.explain_worker_error(OSError(errno.ENOSPC, "no space"))
    assert "/dev/shm, which is full" in str(full)

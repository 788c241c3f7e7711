"""Time the path from photos to training batches on one core.

    python -m benchmarks.image_pipeline --photos DIR_OR_TAR [--photos ...]
        [--side 500] [--lavis PATH] [--torch_python PYTHON] [--wait_steps 20]

Real JPEGs to normalised batches of 8 at 224 px: decode, random resized crop (bicubic,
antialiased), flip, normalise. Each contestant is a process on one core:

    ours          `data/images.py`, then the device's normalisation; JPEGs in memory
    ours, whole   a training run's data path from tars: order, captions, tokens, photos
    pillow        torchvision's transforms of Pillow images in a torch DataLoader
    tensors       torchvision's JPEG decoder and transforms of tensors in a DataLoader
    webdataset    webdataset's loader of the tars, with torchvision's transforms
    original      the original's `Blip2ImageTrainProcessor` in a torch DataLoader

`--side` re-encodes the photos with that longer side (quality 90) before anything is
timed. `--wait_steps` trains the Q-Former of the paper's size on features for so many
steps, with all cores, and reports the share of the time that it waited for data.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import harness

SIZE, COUNT = 224, 80
TOKENS, WIDTH = 257, 1408  # of ViT-g
HEAD = ("photos", "", "images/s/core", "ratio")
TITLE = "Image pipeline"
LOADERS = ("pillow", "tensors", "webdataset")


def main() -> int:
    """Time one set of photos after the other."""
    parser = harness.arguments(__doc__ or "", rounds=5)
    add = parser.add_argument
    add(
        "--photos",
        action="append",
        required=True,
        help="tar of JPEGs, or folder of tars",
    )
    add("--side", type=int, default=0, help="longer side of the photos; 0: as they are")
    add("--wait_steps", type=int, default=0, help="steps of a run on features")
    options = parser.parse_args()
    options.threads, cores = 1, options.threads
    count = 16 if options.tiny else COUNT
    rows, versions = [], ""
    with tempfile.TemporaryDirectory() as directory:
        for number, photos in enumerate(options.photos):
            path = pathlib.Path(directory) / f"{number}.tar"
            files = write_photos(
                tars_of(pathlib.Path(photos)), path, count, options.side
            )
            settings = {"tars": [str(path)], "count": len(files), "size": SIZE}
            with contextlib.ExitStack() as stack:
                workers = [
                    stack.enter_context(worker)
                    for worker in contestants(options, settings)
                ]
                versions = ", ".join(worker.ask("versions") for worker in workers)
                times = harness.take_turns(workers, "load", options.rounds)
            name = f"{len(files)} of {pathlib.Path(photos).name}, {describe(files)}"
            slowest = max(times.values())
            rows += [
                [name, worker, f"{len(files) / taken:.0f}", f"{slowest / taken:.2f}"]
                for worker, taken in times.items()
            ]
        body = harness.table(HEAD, rows)
        if options.wait_steps:
            body += f"\n{waiting(pathlib.Path(directory), options.wait_steps, cores)}\n"
    harness.report(options, TITLE, f"{versions}; {SIZE} px.", body)
    return 0


def contestants(
    options: argparse.Namespace, settings: dict[str, Any]
) -> list[harness.Worker]:
    """Start ours, then the loaders of torch and the original that are installed."""
    ours = [
        harness.Worker(name, sys.executable, "ours", kind, settings, 1)
        for name, kind in (("ours", "images"), ("ours, whole", "training_path"))
    ]
    loaders = [
        harness.Worker(name, options.torch_python, "torch_loaders", name, settings, 1)
        for name in (LOADERS if options.torch_python else ())
    ]
    return [*ours, *loaders, *harness.original(options, "images", settings)]


def write_photos(
    tars: Sequence[pathlib.Path], path: pathlib.Path, count: int, side: int
) -> list[tuple[str, bytes]]:
    """Write the first photos with a caption each to one tar; returns the photos.

    Args:
      tars: tars of JPEGs.
      path: the tar to write.
      count: number of photos.
      side: longer side of the photos, which are re-encoded; 0: they are copied.
    """
    found = harness.photos([str(tar) for tar in tars], count)
    files = [
        (f"{number:05d}.jpg", resize(data, side) if side else data)
        for number, (_, data) in enumerate(found)
    ]
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            text = name.replace(".jpg", ".txt")
            for member, content in ((name, data), (text, b"a photo of two dogs")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return files


def resize(data: bytes, side: int) -> bytes:
    """Return a JPEG with the longer side `side`."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = side / max(image.size)
    width, height = (round(length * scale) for length in image.size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=90
    )
    return file.getvalue()


def waiting(directory: pathlib.Path, steps: int, cores: int) -> str:
    """Train on features for some steps; returns a sentence on the wait for data.

    Args:
      directory: directory with `0.tar`, whose captions are used; files are written.
      steps: number of steps.
      cores: number of cores.
    """
    count, rows = len(harness.photos([str(directory / "0.tar")], COUNT)), 8
    random = np.random.default_rng(0)
    features = random.standard_normal((count, TOKENS, WIDTH), np.float32)
    (directory / "features").mkdir()
    np.save(directory / "features" / "features.npy", features.astype(np.float16))
    keys = [f"0/{number:05d}" for number in range(count)]
    (directory / "features" / "keys.json").write_text(json.dumps(keys))
    vision = {"kind": "features", "num_tokens": TOKENS, "width": WIDTH}
    texts = {"kind": "tars", "paths": str(directory / "0.tar")}
    train = {"kind": "features", "path": str(directory / "features"), "texts": texts}
    config = f"""
from ml_collections import ConfigDict
from blip2_jax.training.train_config import default_config

def get_config():
    config = default_config("stage1").unlock()
    config.steps, config.batch_size, config.log_every = {steps}, {rows}, 1
    config.precision = "float32"
    config.model.preset = "pretrain"
    config.model.overrides = ConfigDict({{"vision": {vision}}})
    config.frozen = ()
    config.data.train = ({train},)
    config.data.tokenizer.qformer = "shapes:bert"
    config.data.workers = 1
    config.optimizer.warmup_steps = 1
    config.checkpoint.every = {steps}
    return config.lock()
"""
    (directory / "config.py").write_text(config)
    command = [sys.executable, "-m", "blip2_jax.cli.train"]
    command += ["--config", str(directory / "config.py")]
    subprocess.run(
        [*command, "--workdir", str(directory / "run")],
        check=True,
        env=harness.environment(),
        stdout=sys.stderr,
        preexec_fn=lambda: harness.use_threads(cores),
    )
    lines = (directory / "run" / "metrics.jsonl").read_text().splitlines()[1:]
    metrics = [json.loads(line) for line in lines]
    share = statistics.mean(line["data_wait_share"] for line in metrics)
    seconds = statistics.median(line["seconds_per_step"] for line in metrics)
    return (
        f"Stage 1 on features of a ViT-g ({TOKENS} x {WIDTH}), {rows} pairs a step, "
        f"{cores} cores: {seconds:.2f} s a step, of which {100 * share:.1f} % wait for "
        "data."
    )


def tars_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the path of a tar, or of the tars in a folder.

    Raises:
      ValueError: there is no tar.
    """
    tars = [path] if path.is_file() else sorted(path.glob("*.tar"))
    if not tars:
        raise ValueError(f"--photos={path}: no tar there")
    return tars


def describe(files: list[tuple[str, bytes]]) -> str:
    """Return the median sides of the photos."""
    sizes = [Image.open(io.BytesIO(data)).size for _, data in files]
    width, height = (statistics.median(side) for side in zip(*sizes, strict=True))
    return f"{width:.0f} x {height:.0f}"


if __name__ == "__main__":
    sys.exit(main())

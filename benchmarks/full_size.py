"""Time a full-size conversion: `python -m benchmarks.full_size --workdir DIR`.

Writes a sharded Hugging Face folder of random bfloat16 weights in the size of a
released model, converts it, opens the result and captions one image; prints time and
peak memory of each part, every one in a process of its own. Needs about 17 GB of disk
and, for the last part, as much memory as the weights and a few GB.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

from benchmarks.harness import GB, ROOT, peak

PARTS = ("write", "convert", "caption")


def main() -> None:
    """Run the parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--preset", default="pretrain_flant5xl")
    parser.add_argument("--tokenizer", default="", help="of the language model")
    parser.add_argument(
        "--part", choices=PARTS, help="run only this part, in this process"
    )
    options = parser.parse_args()
    if options.part:
        run(options)
        return
    options.workdir.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        command = [sys.executable, "-m", "benchmarks.full_size", *sys.argv[1:]]
        command += [f"--part={part}"]
        subprocess.run(command, check=True, cwd=ROOT)


def run(options: argparse.Namespace) -> None:
    """Run one part; print its time and peak memory."""
    theirs, ours = options.workdir / "theirs", options.workdir / "ours"
    start = time.perf_counter()
    if options.part == "write":
        shutil.rmtree(theirs, ignore_errors=True)
        summary = write(theirs, options)
    elif options.part == "convert":
        shutil.rmtree(ours, ignore_errors=True)
        summary = convert(theirs, ours)
    else:
        summary = caption(ours)
    seconds = time.perf_counter() - start
    print(f"{options.part}: {seconds:.0f} s, peak memory {peak():.2f} GB; {summary}")


def write(folder: pathlib.Path, options: argparse.Namespace) -> str:
    """Write random weights under Hugging Face's names, array by array."""
    from blip2_jax.convert.huggingface_export import write_huggingface
    from blip2_jax.convert.model_source import ModelSource, expected_shapes
    from blip2_jax.models import presets

    config = presets.preset(options.preset)
    arrays = RandomArrays(expected_shapes(config))
    model = ModelSource(config, arrays, "random", language_tokenizer=options.tokenizer)
    write_huggingface(model, folder)
    files = list(folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files) / GB
    return f"{len(files)} shards, {size:.2f} GB"


class RandomArrays(dict):
    """Shapes by path, arrays on access: small normal numbers, norms one."""

    def __getitem__(self, path: str) -> np.ndarray:
        shape = super().__getitem__(path).shape
        if path.endswith(("scale", "temperature")):
            return np.ones(shape, ml_dtypes.bfloat16)
        flat = np.empty(int(np.prod(shape)), ml_dtypes.bfloat16)
        rng = np.random.default_rng(len(path))
        for first in range(0, flat.size, 2**22):
            part = flat[first : first + 2**22]
            part[:] = 0.02 * rng.standard_normal(part.size, np.float32)
        return flat.reshape(shape)


def convert(theirs: pathlib.Path, ours: pathlib.Path) -> str:
    """Hugging Face's folder to ours."""
    from blip2_jax.convert.native_folder import write_folder
    from blip2_jax.inference.load import open_model

    write_folder(open_model(theirs), ours)
    manifest = json.loads((ours / "manifest.json").read_text())
    largest = max(int(np.prod(entry["shape"])) * 2 for entry in manifest.values())
    return f"{len(manifest)} arrays, the largest of {largest / GB:.2f} GB"


def caption(ours: pathlib.Path) -> str:
    """Open the converted folder and caption one random image."""
    import blip2_jax

    start = time.perf_counter()
    model = blip2_jax.load(ours)
    loaded = f"{time.perf_counter() - start:.0f} s and {peak():.2f} GB"
    size = model.model.config.vision.image_size
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    text = model.caption(image, num_beams=1, min_new_tokens=8, max_new_tokens=8)
    return f"loaded in {loaded}, said {text!r}"


if __name__ == "__main__":
    main()

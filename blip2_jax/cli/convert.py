"""Convert weights: to this package's folder, to Hugging Face's, to a LAVIS file.

    python launch/convert.py --source blip2-opt-2.7b --to blip2_jax --output weights/opt
    python launch/convert.py --source blip2_pretrained.pth --vision eva_vit_g.pth \\
        --qformer_tokenizer bert-base-uncased --to blip2_jax --output weights/stage1
    python launch/convert.py --source runs/stage2 --to huggingface --output exported
    python launch/convert.py --source runs/stage1 --to lavis --output stage1.pth

The source is a run's directory, a folder that this command wrote, a Hugging Face
BLIP-2 folder or a LAVIS file; what it is shows itself. LAVIS's files leave frozen
towers out: `--vision` (EVA-CLIP, CLIP) and `--language_model` (OPT, T5) name them.
An image encoder, a language model or a BERT alone needs no conversion: configurations
name them as they are (docs/conversion.md).
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Sequence

from blip2_jax.cli.options import add_model_options, given_beside, print_lines

FORMATS = ("blip2_jax", "huggingface", "lavis")
DTYPES = ("float32", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and convert."""
    return print_lines(run, parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--source", required=True, type=pathlib.Path)
    made.add_argument("--to", required=True, choices=FORMATS)
    made.add_argument("--output", required=True, type=pathlib.Path)
    made.add_argument("--dtype", choices=DTYPES, help="of all arrays; default: as is")
    add_model_options(made)
    made.add_argument(
        "--complete",
        action="store_true",
        help="a LAVIS file with its frozen towers, which LAVIS leaves out",
    )
    return made


def run(arguments: argparse.Namespace) -> list[str]:
    """Convert; returns what to tell."""
    from blip2_jax.convert.huggingface_folder import write_huggingface
    from blip2_jax.convert.lavis_file import write_lavis
    from blip2_jax.convert.native_folder import write_folder
    from blip2_jax.training.open_model import ExtraWeights, open_model

    beside = ExtraWeights(**given_beside(arguments))
    start, output = time.perf_counter(), arguments.output
    model = open_model(arguments.source, beside, arguments.which)
    told = [f"{arguments.source}: {model.summary()}"]
    if arguments.to == "blip2_jax":
        write_folder(model, output, arguments.dtype)
    elif arguments.to == "huggingface":
        told += write_huggingface(model, output, arguments.dtype)
    else:
        told += write_lavis(model, output, arguments.dtype, arguments.complete)
    seconds = time.perf_counter() - start
    return [*told, f"wrote {output} ({arguments.to}) in {seconds:.0f} s"]


if __name__ == "__main__":
    sys.exit(main())

r"""Convert weights between this package, Hugging Face and LAVIS.

    blip2-jax convert --model blip2-opt-2.7b --to blip2_jax --out weights/opt
    blip2-jax convert --model blip2_pretrained.pth --vision eva_vit_g.pth \
        --qformer_tokenizer bert-base-uncased --to blip2_jax --out weights/stage1
    blip2-jax convert --model runs/stage2 --to huggingface --out exported
    blip2-jax convert --model runs/stage1 --to lavis --out stage1.pth

The model is the directory of a run, a folder that this command wrote, a Hugging Face
BLIP-2 folder or a LAVIS file; its kind is detected. LAVIS files do not contain the
frozen towers: name those by `--vision` (EVA-CLIP, CLIP) and `--language_model` (OPT,
T5).

An image encoder, a language model or a BERT alone needs no conversion: configurations
name them as they are (docs/conversion.md).
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Sequence

from blip2_jax.cli.options import (
    CommandParser,
    add_model_options,
    extra_weights,
    run_command,
)

FORMATS = ("blip2_jax", "huggingface", "lavis")
DTYPES = ("float32", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("convert", __doc__)
    parser.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help="the weights: a path or a name of the hub",
    )
    parser.add_argument("--to", required=True, choices=FORMATS, help="format to write")
    parser.add_argument(
        "--out",
        required=True,
        type=pathlib.Path,
        metavar="PATH",
        help="folder to write, or file for LAVIS",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of all arrays; default: unchanged"
    )
    parser.former_names |= {"--source": "--model", "--output": "--out"}
    add_model_options(parser)
    parser.add_argument(
        "--complete",
        action="store_true",
        help="write the frozen towers to a LAVIS file too",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Convert and print a summary; returns the exit code."""
    from blip2_jax.convert.huggingface_export import write_huggingface
    from blip2_jax.convert.lavis_file import write_lavis
    from blip2_jax.convert.native_folder import write_folder
    from blip2_jax.inference.load import ExtraWeights, open_model

    start, output = time.perf_counter(), arguments.out
    extra = ExtraWeights(**extra_weights(arguments))
    model = open_model(arguments.model, extra, arguments.which)
    print(f"{arguments.model}: {model.summary()}", flush=True)
    notes: Sequence[str] = ()
    if arguments.to == "blip2_jax":
        write_folder(model, output, arguments.dtype)
    elif arguments.to == "huggingface":
        notes = write_huggingface(model, output, arguments.dtype)
    else:
        notes = write_lavis(model, output, arguments.dtype, arguments.complete)
    for note in notes:
        print(note)
    seconds = time.perf_counter() - start
    print(f"wrote {output} ({arguments.to}) in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

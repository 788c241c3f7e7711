r"""Convert weights between this package, Hugging Face and LAVIS.

    blip2-jax convert --model Salesforce/blip2-opt-2.7b --to blip2_jax --out weights/opt
    blip2-jax convert --model blip2_pretrained.pth --vision eva_vit_g.pth \
        --qformer_tokenizer google-bert/bert-base-uncased --to blip2_jax \
        --out weights/stage1
    blip2-jax convert --model runs/stage2 --to huggingface --out exported
    blip2-jax convert --model runs/stage2 --to huggingface --out exported \
        --push ORG/NAME
    blip2-jax convert --model runs/stage1 --to lavis --out stage1.pth
    blip2-jax convert --model runs/lora --to peft --out adapter
    blip2-jax convert --model Salesforce/blip2-opt-2.7b --lora adapter \
        --to huggingface --out merged

The model is the directory of a run, a folder that this command wrote, a Hugging Face
BLIP-2 folder, a LAVIS file or a name of the Hugging Face hub; its kind is detected.
LAVIS files do not contain the frozen towers: name those by `--vision` (EVA-CLIP, CLIP)
and `--language_model` (OPT, T5, Vicuna); a file of MiniGPT-4 needs `--qformer` too. A
run with LoRA is written with its matrices merged into the weights; `peft` writes the
matrices alone, in the layout of PEFT.

An image encoder, a language model or a BERT alone needs no conversion: configurations
name them as they are (docs/conversion.md).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blip2_jax.cli.options import (
    CommandParser,
    UsageError,
    add_model_options,
    extra_weights,
    run_command,
)
from blip2_jax.parallel.paths import as_path

if TYPE_CHECKING:
    from blip2_jax.convert.model_source import ModelSource

FORMATS = ("blip2_jax", "huggingface", "lavis", "peft")
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
        type=as_path,
        metavar="PATH",
        help="folder to write, or file for LAVIS",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of all arrays; default: unchanged"
    )
    parser.former_names |= {"--source": "--model", "--output": "--out"}
    add_model_options(parser)
    parser.add_argument(
        "--push",
        metavar="ORG/NAME",
        help="upload the folder to the Hugging Face hub, with a model card",
    )
    parser.add_argument(
        "--private", action="store_true", help="make a new repository private"
    )
    parser.add_argument(
        "--license",
        default="",
        metavar="NAME",
        help="licence in the model card, as the hub names it: mit, apache-2.0, ...",
    )
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
    if arguments.push:
        check_push(arguments)
    if arguments.to == "peft":
        return write_peft(arguments)
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
    print(f"wrote {output} ({arguments.to}) in {seconds:.0f} s", flush=True)
    if arguments.push:
        push(model, arguments)
    return 0


def write_peft(arguments: argparse.Namespace) -> int:
    """Write the matrices of a run with LoRA as a PEFT folder; returns the exit code."""
    from blip2_jax.convert.peft_adapter import write_adapter
    from blip2_jax.training.trained_model import open_matrices

    lora = open_matrices(as_path(arguments.model), arguments.which)
    print(f"{arguments.model}: {lora.summary()}", flush=True)
    write_adapter(lora, arguments.out, arguments.dtype)
    print(f"wrote {arguments.out} (peft)", flush=True)
    return 0


def check_push(arguments: argparse.Namespace) -> None:
    """Check that the output can be uploaded, before it is made.

    Raises:
      UsageError: the output is no folder, or the name is not ORG/NAME.
      HubError: the hub does not accept this user.
    """
    from blip2_jax.data.hub_upload import check_login

    if arguments.to not in ("blip2_jax", "huggingface"):
        raise UsageError(
            "--push uploads a folder: --to must be blip2_jax or huggingface"
        )
    if arguments.push.count("/") != 1 or ":" in arguments.push:
        raise UsageError(f"--push {arguments.push!r} must have the form ORG/NAME")
    check_login()


def push(model: ModelSource, arguments: argparse.Namespace) -> None:
    """Add a model card to the output and upload it."""
    from blip2_jax.cli.model_card import model_card
    from blip2_jax.data.hub_upload import upload

    card = model_card(
        model, arguments.model, arguments.to, arguments.push, arguments.license
    )
    (arguments.out / "README.md").write_text(card)
    message = f"Upload {arguments.out.name} with blip2_jax"
    url = upload(arguments.out, arguments.push, message, arguments.private)
    print(f"pushed to {url}")


if __name__ == "__main__":
    sys.exit(main())

r"""Caption web images, rank all captions of each image, and keep the best (CapFilt).

    blip2-jax capfilt --data "web/*.tar" --out data/capfilt \
        --captioner Salesforce/blip-image-captioning-large \
        --ranker openai/clip-vit-large-patch14
    blip2-jax capfilt --data web.csv --captioner RUN2 --ranker RUN1 --out data/capfilt
    blip2-jax capfilt --data '{"kind": "shapes", "split": "train", "size": 40}' \
        --captioner shapes --ranker shapes_stage1 --out runs/capfilt

Samples captions of each image, scores them and its web captions by image-text
similarity, and keeps the two best, as section 4 of the paper does. Writes tars that
`train --data` reads, with the scores of all captions, and a page about them. The same
command continues after a kill.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blip2_jax.cli.data_option import add_data_options, read_data_option
from blip2_jax.cli.errors import UsageError, reading_option
from blip2_jax.cli.options import CommandParser, add_cache_option, run_command
from blip2_jax.cli.shard_options import add_shard_options, shard_options
from blip2_jax.parallel.paths import as_path

if TYPE_CHECKING:
    from blip2_jax.capfilt.job import CapFiltJob

# Names of options whose values must be positive.
_POSITIVE = ("keep", "num_captions", "batch_size", "shard_size")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("capfilt", __doc__)
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="directory of tars and report")
    add(
        "--captioner",
        required=True,
        metavar="PATH",
        help="model that samples captions: BLIP's captioner, or any BLIP-2 that "
        "`caption --model` takes",
    )
    add(
        "--ranker",
        required=True,
        metavar="PATH",
        help="model that scores captions: CLIP, or a stage-1 model",
    )
    for name in ("captioner", "ranker"):
        add(
            f"--{name}_tokenizer",
            default="",
            metavar="PATH",
            help=f"directory or hub name of the {name}'s tokenizer, if it has none",
        )
    add(
        "--score",
        default="",
        choices=("itc", "itm"),
        help="score of a stage-1 ranker: cosine or match probability (default: itc)",
    )
    add("--keep", type=int, default=2, metavar="N", help="captions to keep of an image")
    add_data_options(parser, "images with their web captions")
    _add_sampling_options(parser)
    _add_work_options(parser)
    add_shard_options(parser)
    return parser


def _add_sampling_options(parser: CommandParser) -> None:
    add = parser.add_argument_group("sampling of captions").add_argument
    add(
        "--num_captions",
        type=int,
        default=10,
        metavar="N",
        help="captions to sample of each image",
    )
    add(
        "--top_p",
        type=float,
        default=0.9,
        metavar="P",
        help="sample among tokens of this total probability",
    )
    add(
        "--max_new_tokens",
        type=int,
        default=0,
        metavar="N",
        help="longest caption; 0: the captioner's default",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="an image's captions depend on it and the image's number in the data",
    )


def _add_work_options(parser: CommandParser) -> None:
    add = parser.add_argument_group("work").add_argument
    add("--precision", choices=("float32", "bfloat16"), help="of both models")
    add("--batch_size", type=int, default=32, metavar="N", help="images per batch")
    add("--shard_size", type=int, default=1000, metavar="N", help="images per tar")
    add(
        "--max_broken_share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of broken images in a shard above which the job stops",
    )
    add(
        "--examples",
        type=int,
        default=24,
        metavar="N",
        help="images with all captions on the report's page",
    )
    add_cache_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the tars and the report; returns the exit code."""
    for name in _POSITIVE:
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name} must be at least 1")
    job = make_job(arguments)
    from blip2_jax.parallel.shard_jobs import run_shards
    from blip2_jax.perf.compile_cache import enable_compile_cache

    enable_compile_cache(arguments.compile_cache)
    run_shards(job, **shard_options(arguments))
    write_page(job, arguments.examples)
    return 0


def write_page(job: CapFiltJob, examples: int) -> None:
    """Write `report.html` about all finished shards and print its main figures."""
    from blip2_jax.capfilt.counts import sum_counts
    from blip2_jax.parallel.shard_jobs import read_reports
    from blip2_jax.reports.capfilt_page import capfilt_page, read_examples, web_share

    finished = read_reports(job, range(job.num_shards()))
    counts = sum_counts(finished.values())
    tars = [job.output / job.file_name(shard) for shard in finished]
    page = capfilt_page(job.settings(), counts, read_examples(tars, examples))
    (job.output / "report.html").write_text(page)
    print(f"{job.output}/*.tar: {len(finished)} of {job.num_shards()} shards")
    print(f"{counts.images} of {counts.records} images; {web_share(counts)}")
    for cause, number in counts.broken.most_common():
        print(f"left out: {number} {cause}")
    if counts.without_captions:
        print(f"left out: {counts.without_captions} no caption")
    print(f"report: {job.output / 'report.html'}")


def make_job(arguments: argparse.Namespace) -> CapFiltJob:
    """Make the job of a command line.

    Raises:
      UsageError: there is no data, or an option's value is wrong.
      ValueError, FileNotFoundError: the data cannot be opened.
    """
    from blip2_jax.capfilt.job import CapFiltJob, CapFiltOptions
    from blip2_jax.capfilt.models import ModelName, Sampling

    with reading_option("--"):
        sampling = Sampling(
            num_captions=arguments.num_captions,
            top_p=arguments.top_p,
            max_new_tokens=arguments.max_new_tokens,
            seed=arguments.seed,
        )
    specs = read_data_option(arguments)
    if not specs:
        raise UsageError("--data is missing: images with their web captions")
    options = CapFiltOptions(
        captioner=ModelName(arguments.captioner, arguments.captioner_tokenizer),
        ranker=ModelName(arguments.ranker, arguments.ranker_tokenizer),
        score=arguments.score,
        sampling=sampling,
        keep=arguments.keep,
        precision=arguments.precision,
    )
    return CapFiltJob(
        as_path(arguments.out),
        specs,
        options,
        shard_size=arguments.shard_size,
        batch_size=arguments.batch_size,
        max_broken_share=arguments.max_broken_share,
    )


if __name__ == "__main__":
    sys.exit(main())

"""Compare evaluations: write tables as Markdown and a page with examples as HTML.

    blip2-jax report a.json b.json --out runs/report
    blip2-jax report captions.json --count 12 --maps 8

A record is a JSON file that `blip2-jax evaluate` wrote, with its examples beside it.
Writes `OUT.md`, which is also printed, and `OUT.html` with the best and worst examples,
accuracy by type of question, retrieval results and, with `--maps`, attention maps of
the queries. Records over the same data are compared with the first of them, paired by
example.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from blip2_jax.cli.options import CommandParser, add_cache_option, run_command
from blip2_jax.parallel.paths import as_path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("report", __doc__)
    parser.add_argument(
        "records", nargs="+", type=as_path, metavar="RECORD", help="JSON records"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("report"),
        metavar="PATH",
        help="path of the files to write, without extension",
    )
    parser.add_argument(
        "--count",
        type=int,
        default=6,
        metavar="N",
        help="number of examples of each kind",
    )
    add_cache_option(parser)
    parser.add_argument(
        "--maps",
        type=int,
        default=0,
        metavar="N",
        help="number of images with attention maps of each model; loads the models",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write both files and print the Markdown; returns the exit code."""
    from blip2_jax.evaluation.breakdown import question_type_tables
    from blip2_jax.evaluation.compare import group_entries, read_entries
    from blip2_jax.perf.compile_cache import enable_compile_cache
    from blip2_jax.reports.attention import attention_maps_of_record
    from blip2_jax.reports.record_images import RecordImages
    from blip2_jax.reports.record_page import record_markdown, record_page

    if arguments.maps:
        enable_compile_cache(arguments.compile_cache)
    groups = group_entries(read_entries(arguments.records))
    tables = question_type_tables(groups)
    images, maps = {}, {}
    for index, group in enumerate(groups):
        try:
            images[index] = RecordImages(group.entries[0].record["settings"]["data"])
        except (ValueError, OSError) as error:
            print(f"no images of {group.title}: {error}")
        for entry in group.entries if arguments.maps else ():
            settings = entry.record["settings"]
            try:
                maps[entry.name] = attention_maps_of_record(
                    settings, images.get(index), arguments.maps
                )
            except (ValueError, OSError) as error:
                print(f"no attention maps of {entry.name}: {error}")
    text = record_markdown(groups, tables)
    out = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    markdown, page = (out.with_name(f"{out.name}.{kind}") for kind in ("md", "html"))
    markdown.write_text(text)
    page.write_text(record_page(groups, tables, images, maps, arguments.count))
    print(text)
    print(f"written to {markdown} and {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write a page about training runs, or compare evaluations with examples.

    blip2-jax report --runs runs/stage1
    blip2-jax report --runs runs/a runs/b --out runs/comparison
    blip2-jax report a.json b.json --out runs/report
    blip2-jax report captions.json --count 12 --maps 8

Of a run, which may be in progress, the page shows curves, samples through training,
scores, configuration, sources and versions; of several runs, side by side, also the
keys that differ. Records of evaluations inside their directories are included.

A record is a JSON file that `blip2-jax evaluate` wrote, with its examples beside it.
Records over the same data are compared with the first of them, paired by example.
Writes `OUT.md`, which is also printed, and `OUT.html` with the best and worst examples,
accuracy by type of question, retrieval results and, with `--maps`, attention maps.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blip2_jax.cli.errors import UsageError
from blip2_jax.cli.options import CommandParser, add_cache_option, run_command
from blip2_jax.parallel.paths import as_path

if TYPE_CHECKING:
    from blip2_jax.evaluation.compare import Entry, Group, Table
    from blip2_jax.reports.attention_figures import PictureMaps
    from blip2_jax.reports.record_images import RecordImages

    # Groups of records, further tables, images by group, attention maps by entry.
    Contents = tuple[
        list[Group],
        dict[str, Table],
        dict[int, RecordImages],
        dict[str, list[PictureMaps]],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("report", __doc__)
    parser.add_argument(
        "records", nargs="*", type=as_path, metavar="RECORD", help="JSON records"
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        default=[],
        type=as_path,
        metavar="DIR",
        help="directories of training runs",
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
    if arguments.runs:
        text, page = _run_report(arguments)
    elif arguments.records:
        text, page = _record_report(arguments)
    else:
        raise UsageError("name records of evaluations, or --runs DIR")
    out = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    markdown, html = (out.with_name(f"{out.name}.{kind}") for kind in ("md", "html"))
    markdown.write_text(text)
    html.write_text(page)
    print(text)
    print(f"written to {markdown} and {html}")
    return 0


def _record_report(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return Markdown and page about records of evaluations."""
    from blip2_jax.evaluation.compare import read_entries
    from blip2_jax.reports.record_page import record_markdown, record_page

    contents = _collect(arguments, read_entries(arguments.records))
    groups, tables, _, _ = contents
    return record_markdown(groups, tables), record_page(*contents, arguments.count)


def _run_report(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return Markdown and page about runs and the records that belong to them."""
    from blip2_jax.evaluation.compare import read_entries, rename_entries
    from blip2_jax.reports.record_page import record_markdown, record_sections
    from blip2_jax.reports.run_page import run_markdown, run_page
    from blip2_jax.reports.run_record import read_runs

    runs = read_runs(arguments.runs)
    entries = [entry for each in runs for entry in each.entries]
    entries = rename_entries([*entries, *read_entries(arguments.records)])
    images = {}
    for each in runs:
        if each.samples and (found := _open_images(each.evaluation_sources, each.name)):
            images[each.name] = found
    if not entries:
        return run_markdown(runs), run_page(runs, images)
    contents = _collect(arguments, entries)
    groups, tables, _, _ = contents
    text = f"{run_markdown(runs)}\n{record_markdown(groups, tables)}"
    sections = record_sections(*contents, arguments.count)
    return text, run_page(runs, images, sections)


def _collect(arguments: argparse.Namespace, entries: Sequence[Entry]) -> Contents:
    """Group records; open their images and, with --maps, compute attention maps."""
    from blip2_jax.evaluation.breakdown import question_type_tables
    from blip2_jax.evaluation.compare import group_entries
    from blip2_jax.perf.compile_cache import enable_compile_cache
    from blip2_jax.reports.attention import attention_maps_of_record

    if arguments.maps:
        enable_compile_cache(arguments.compile_cache)
    groups = group_entries(entries)
    images, maps = {}, {}
    for index, group in enumerate(groups):
        sources = group.entries[0].record["settings"]["data"]
        if found := _open_images(sources, group.title):
            images[index] = found
        for entry in group.entries if arguments.maps else ():
            try:
                maps[entry.name] = attention_maps_of_record(
                    entry.record["settings"], images.get(index), arguments.maps
                )
            except (ValueError, OSError) as error:
                print(f"no attention maps of {entry.name}: {error}")
    return groups, question_type_tables(groups), images, maps


def _open_images(
    sources: Sequence[Mapping[str, Any]], title: str
) -> RecordImages | None:
    """Open the images of evaluated data; None, and a message, if they are missing."""
    from blip2_jax.reports.record_images import RecordImages

    try:
        return RecordImages(sources)
    except (ValueError, OSError) as error:
        print(f"no images of {title}: {error}")
        return None


if __name__ == "__main__":
    sys.exit(main())

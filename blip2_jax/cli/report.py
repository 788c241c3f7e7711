"""Several evaluations side by side, as Markdown and as a page with pictures.

    python launch/report.py a.json b.json --out runs/report

A record is what `launch/evaluate.py` wrote, with its examples beside it. Writes
`OUT.md`, which is printed too, and `OUT.html`: best and worst examples, accuracy by
type of question, searches and, with `--maps`, where the queries look; that opens the
models. Records over the same data are compared with the first of them, in pairs.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence

from blip2_jax.cli.options import print_lines


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and report."""
    return print_lines(run, parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("records", nargs="+", type=pathlib.Path, metavar="RECORD")
    made.add_argument("--out", type=pathlib.Path, default=pathlib.Path("report"))
    made.add_argument(
        "--count", type=int, default=6, help="examples of a kind that are shown"
    )
    made.add_argument(
        "--maps", type=int, default=0, help="pictures with attention maps, each model"
    )
    made.add_argument("--debug", action="store_true", help="show where an error is")
    return made


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Write both files; tells what they say."""
    from blip2_jax.evaluation.breakdown import insights_of
    from blip2_jax.evaluation.compare import as_markdown, groups_of, read_entries
    from blip2_jax.reports.attention import attention_of
    from blip2_jax.reports.page import Pictures
    from blip2_jax.reports.record_page import record_page

    groups = groups_of(read_entries(arguments.records))
    insights = insights_of(groups)
    pictures, maps = {}, {}
    for place, group in enumerate(groups):
        try:
            pictures[place] = Pictures(group.entries[0].record["settings"]["data"])
        except (ValueError, OSError) as error:
            yield f"no pictures of {group.title}: {error}"
        for entry in group.entries if arguments.maps else ():
            settings = entry.record["settings"]
            try:
                maps[entry.name] = attention_of(
                    settings, pictures.get(place), arguments.maps
                )
            except (ValueError, OSError) as error:
                yield f"no attention maps of {entry.name}: {error}"
    text = as_markdown(groups, insights)
    out = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    written = [out.with_name(f"{out.name}.{kind}") for kind in ("md", "html")]
    written[0].write_text(text)
    page = record_page(groups, insights, pictures, maps, arguments.count)
    written[1].write_text(page)
    yield text
    yield f"written to {written[0]} and {written[1]}"


if __name__ == "__main__":
    sys.exit(main())

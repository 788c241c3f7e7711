r"""Try a model on a web page of this machine.

    blip2-jax web
    blip2-jax web --model RUN
    blip2-jax web --model stage2 --retriever stage1 --index photos.index
    blip2-jax web --model RUN --host 0.0.0.0 --port 8080

The page describes pictures, answers questions about them, ranks texts, shows where the
model looked for each word, and searches pictures (docs/demo_page.md). Without `--model`
it opens the small models of the package. A stage-1 model has the tabs of what it can
do. `blip2-jax demo --model RUN` is the same command. It needs the extra `demo`:
pip install 'blip2_jax[demo]'.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import threading
from collections.abc import Sequence

from blip2_jax.cli.errors import UsageError
from blip2_jax.cli.options import (
    CommandParser,
    add_load_options,
    load_options,
    run_command,
)
from blip2_jax.parallel.signals import exit_on_sigterm

OWN_MODEL, OWN_RETRIEVER = "shapes", "shapes_stage1"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("web", __doc__)
    add_load_options(parser, default=OWN_MODEL)
    add = parser.add_argument
    add(
        "--retriever",
        default="",
        metavar="PATH",
        help="stage-1 model that matches and searches, beside a stage-2 model; "
        f"default: {OWN_RETRIEVER} beside {OWN_MODEL}, otherwise none",
    )
    add(
        "--index",
        default="",
        metavar="DIR",
        help="index of pictures to search, which `blip2-jax search` has built with the "
        "stage-1 model",
    )
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to bind to; 0.0.0.0 lets other machines in",
    )
    add(
        "--port",
        type=int,
        metavar="N",
        help="port; default: the first free one from 7860 on",
    )
    add(
        "--max_upload_mb",
        type=float,
        default=10.0,
        metavar="MB",
        help="largest picture file",
    )
    add(
        "--max_megapixels",
        type=float,
        default=25.0,
        metavar="MP",
        help="largest picture in million pixels",
    )
    add(
        "--max_batch",
        type=int,
        default=8,
        metavar="N",
        help="requests of users that are computed together",
    )
    add(
        "--max_queue",
        type=int,
        default=32,
        metavar="N",
        help="requests that may wait; more are refused with a message",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; returns the exit code."""
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the page needs gradio: pip install 'blip2_jax[demo]'")
    for name in ("max_upload_mb", "max_megapixels", "max_batch", "max_queue"):
        if getattr(arguments, name) <= 0:
            raise UsageError(f"--{name} must be above 0")
    import blip2_jax
    from blip2_jax.inference.retriever import Blip2Retriever
    from blip2_jax.perf.compile_cache import enable_compile_cache
    from blip2_jax.serve.page_server import page_server
    from blip2_jax.serve.uploads import UploadLimits

    enable_compile_cache(arguments.compile_cache)
    model = blip2_jax.load(**load_options(arguments))
    name = arguments.retriever
    if not name and arguments.model == OWN_MODEL:
        name = OWN_RETRIEVER
    retriever = blip2_jax.load(name) if name else None
    if retriever is not None and not isinstance(retriever, Blip2Retriever):
        raise UsageError(f"--retriever needs a stage-1 model; {name} is of stage 2")
    limits = UploadLimits(
        int(arguments.max_upload_mb * 1e6), int(arguments.max_megapixels * 1e6)
    )
    with (
        exit_on_sigterm(),  # after the temporary folder is deleted
        contextlib.suppress(KeyboardInterrupt),
        page_server(
            model,
            retriever,
            arguments.index,
            host=arguments.host,
            port=arguments.port,
            limits=limits,
            max_batch=arguments.max_batch,
            max_queue=arguments.max_queue,
        ) as url,
    ):
        print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())

r"""Serve a model over HTTP: captions, answers, matches, rankings, embeddings.

    blip2-jax serve --model shapes
    blip2-jax serve --model runs/demo/stage2_opt --retriever runs/demo/stage1
    blip2-jax serve --model Salesforce/blip2-opt-2.7b --quantize int8 --host 0.0.0.0

The server speaks OpenAI's API: POST /v1/chat/completions and /v1/embeddings, also
/v1/match and /v1/rank; GET /v1/models, /health, /ready and /metrics (docs/server.md).
It needs the extra `serve`: pip install 'blip2_jax[serve]'.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from blip2_jax.cli.errors import UsageError, reading_option
from blip2_jax.cli.options import (
    CommandParser,
    add_cache_option,
    add_load_options,
    load_options,
    run_command,
)
from blip2_jax.serve.server_config import ServerConfig

API_KEY = "BLIP2_JAX_API_KEY"
# Fields of `ServerConfig`: type and help.
LIMITS = {
    "max_batch": (int, "largest number of requests computed together"),
    "batch_wait": (float, "seconds that an idle model waits for further requests"),
    "max_queue": (int, "requests that wait; more are refused with 429"),
    "timeout": (float, "seconds until a request is given up with 504"),
    "upload_timeout": (float, "seconds in which a body must arrive, or 408"),
    "max_body": (int, "bytes of a body"),
    "max_pixels": (int, "pixels of an image"),
    "max_images": (int, "images of a request"),
    "max_prompt": (int, "characters of a request's texts"),
    "max_texts": (int, "candidates, texts or inputs of a request"),
    "max_tokens": (int, "largest max_tokens of a request"),
    "max_choices": (int, "largest n of a request, and number of beams"),
    "warm_tokens": (int, "compile prompts of up to so many tokens before /ready"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("serve", __doc__)
    add_load_options(parser)
    parser.add_argument(
        "--retriever",
        default="",
        metavar="PATH",
        help="a stage-1 model beside a stage-2 --model, for matches and embeddings",
    )
    add_cache_option(parser)
    _add_server_options(parser)
    return parser


def _add_server_options(parser: CommandParser) -> None:
    server = parser.add_argument_group("server (docs/server.md)")
    server.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; 0.0.0.0 lets other machines in",
    )
    server.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port; 0 takes a free one"
    )
    server.add_argument(
        "--api_key",
        default="",
        metavar="KEY",
        help=f"key that requests must carry; better given as {API_KEY}, because "
        "other users of the machine see command lines",
    )
    server.add_argument(
        "--allow_urls",
        action="store_true",
        help="download images from http(s) URLs of public addresses",
    )
    for name, (kind, description) in LIMITS.items():
        server.add_argument(
            f"--{name}",
            type=kind,
            default=getattr(ServerConfig, name),
            metavar="N" if kind is int else "SECONDS",
            help=description,
        )


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    config = server_config(arguments)
    try:
        from blip2_jax.serve.server import serve
    except ModuleNotFoundError as error:
        raise ImportError(
            f"serve needs {error.name}: pip install 'blip2_jax[serve]'"
        ) from None
    import blip2_jax
    from blip2_jax.perf.compile_cache import enable_compile_cache

    enable_compile_cache(arguments.compile_cache)
    options: dict[str, Any] = {
        "precision": arguments.precision,
        "quantize": arguments.quantize,
        "batch_size": config.max_batch,
    }
    model = blip2_jax.load(**load_options(arguments) | options)
    models = {model_name(arguments.model): model}
    if arguments.retriever:
        name = model_name(arguments.retriever)
        if name in models:
            raise UsageError(f"--retriever: two models are named {name!r}")
        models[name] = blip2_jax.load(arguments.retriever, **options)
        if not isinstance(models[name], blip2_jax.Blip2Retriever):
            raise UsageError(f"--retriever: {arguments.retriever} is of stage 2")
    serve(models, config, arguments.host, arguments.port)
    return 0


def server_config(arguments: argparse.Namespace) -> ServerConfig:
    """Return the settings of the server.

    Raises:
      UsageError: a value is out of range.
    """
    if not 0 <= arguments.port < 65536:
        raise UsageError(f"--port {arguments.port}: expected 0 to 65535")
    with reading_option("--"):
        return ServerConfig(
            api_key=arguments.api_key or os.environ.get(API_KEY, ""),
            allow_urls=arguments.allow_urls,
            **{name: getattr(arguments, name) for name in LIMITS},
        )


def model_name(path: str) -> str:
    """Return the name under which a model is served: the last part of its path."""
    return pathlib.PurePosixPath(path).name or path


if __name__ == "__main__":
    sys.exit(main())

"""The web page as a server: its files in a temporary folder, its limits, its end."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

import blip2_jax
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.image_index import ImageIndex
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.parallel.environment import environment
from blip2_jax.serve.page import PageContent, build_page
from blip2_jax.serve.page_actions import PageActions
from blip2_jax.serve.page_style import CSS, theme
from blip2_jax.serve.uploads import UploadLimits

EXAMPLES = 6  # pictures that a user may click
SEARCHED = 48  # example pictures that are searched
# What the shipped models know, and what the example pictures show.
SHAPES_TEXTS = """a small purple triangle
a small purple triangle above a large orange circle
a small orange cross
a small blue ring above a small orange cross"""
SHAPES_QUESTIONS = (
    "how many things are there?",
    "what shape is the thing at the bottom right?",
    "is there a small purple triangle?",
)
SHAPES_SEARCHES = ("a large red star", "a small orange cross", "a large yellow circle")


@contextlib.contextmanager
def page_server(
    model: Blip2,
    retriever: Blip2Retriever | None = None,
    index: str = "",
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: UploadLimits | None = None,
    max_batch: int = 8,
    max_queue: int = 32,
) -> Iterator[str]:
    """Serve the page while the block runs.

    Args:
      model: that describes pictures and answers.
      retriever: a stage-1 model beside it, which matches and searches.
      index: directory of an index of the stage-1 model. "": none; the shipped models
        search example pictures.
      host: address to bind to.
      port: port to bind to; None: the first free one from 7860 on.
      limits: of uploads.
      max_batch: requests that are run together.
      max_queue: requests that may wait.

    Yields:
      The URL.

    Raises:
      ValueError: the model takes features, or the index does not fit.
      OSError: the port is in use.
    """
    if isinstance(model.model.config.vision, FeaturesConfig):
        raise ValueError("this model was trained on features: it reads no pictures")
    matcher = model if isinstance(model, Blip2Retriever) else retriever
    is_shapes = model.origin.startswith("shapes")
    with tempfile.TemporaryDirectory(prefix="blip2_jax_page_") as name:
        folder = pathlib.Path(name)
        opened: ImageIndex | None = None
        if index:
            if matcher is None:
                raise ValueError("an index needs a stage-1 model, to search it")
            opened = ImageIndex.open(matcher, index)
        elif is_shapes and matcher is not None:
            draw_pictures(folder / "photos", SEARCHED)
            opened = ImageIndex.build(matcher, folder / "photos", folder / "index")
        actions = PageActions(
            model,
            retriever,
            opened,
            limits=limits,
            max_batch=max_batch,
            max_queue=max_queue,
        )
        variables = {
            "GRADIO_TEMP_DIR": str(folder / "uploads"),
            "GRADIO_ANALYTICS_ENABLED": "False",  # asks no other host
        }
        try:
            with environment(variables):
                content = _content(model, folder, is_shapes)
                with serve_page(actions, content, host, port) as url:
                    yield url
        finally:
            actions.close()


@contextlib.contextmanager
def serve_page(
    actions: PageActions, content: PageContent, host: str, port: int | None
) -> Iterator[str]:
    """Serve the page of some actions while the block runs; yields the URL."""
    page = build_page(actions, content)
    # As many events run at once as requests may wait; the engine refuses more.
    page.queue(
        max_size=4 * actions.max_queue, default_concurrency_limit=actions.max_queue
    )
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        inbrowser=False,
        share=False,
        ssr_mode=False,
        footer_links=[],
        max_file_size=actions.limits.bytes,
        max_threads=actions.max_queue + 8,
        theme=theme(),
        css=CSS,
    )
    try:
        yield url
    finally:
        page.close(verbose=False)


def _content(model: Blip2, folder: pathlib.Path, is_shapes: bool) -> PageContent:
    """Return texts and examples; only the world of the shipped models has some."""
    name = model.origin or type(model).__name__
    stage = "2" if isinstance(model, Blip2Generator) else "1"
    about = f"Model: `{name}`, stage {stage}. blip2_jax {blip2_jax.__version__}."
    if not is_shapes:
        return PageContent("BLIP-2", about)
    return PageContent(
        "BLIP-2",
        about,
        draw_pictures(folder / "examples", EXAMPLES),
        SHAPES_QUESTIONS,
        SHAPES_TEXTS,
        SHAPES_SEARCHES,
    )


def draw_pictures(folder: pathlib.Path, count: int) -> list[str]:
    """Draw example pictures to files; returns their paths."""
    folder.mkdir(parents=True)
    paths = [folder / f"shapes{number:02d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        blip2_jax.example_image(number, size=256).save(path)
    return [str(path) for path in paths]

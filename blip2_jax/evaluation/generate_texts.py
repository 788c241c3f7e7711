"""Text generation for the images of an evaluation set, shared by all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import NamedTuple, TypeVar

import numpy as np

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.evaluation.tasks import EvaluationBatches
from blip2_jax.parallel import hosts
from blip2_jax.parallel.progress import track_progress

T = TypeVar("T")
U = TypeVar("U")


class GenerationBatch(NamedTuple):
    """Texts to generate in one call of a model.

    Attributes:
      indices: which texts these are, in the list given to `generate_texts`.
      images: `{"images": ...}` or `{"features": ...}`; an image that several texts
        share occurs once.
      image_of: the row of `images` for each text.
    """

    indices: list[int]
    images: dict[str, np.ndarray]
    image_of: list[int]


def generate_texts(
    batches: EvaluationBatches,
    records: Sequence[int],
    label: str,
    generate: Callable[[GenerationBatch], list[str]],
) -> list[tuple[int, str]]:
    """Generate one text for each of `records`; every process gets all texts.

    Args:
      batches: the images; a text whose image cannot be read is left out.
      records: indices into `batches.data.records`; one may occur several times.
      label: shown beside the progress.
      generate: gives the texts of a batch.

    Returns:
      Pairs of an index into `records` and its text, in order.
    """
    size, share = batches.batch_size, batches.share
    own = share.indices(len(records))
    chunks = [own[start:][:size] for start in range(0, len(own), size)]
    texts: list[tuple[int, str]] = []
    for batch in _read_ahead(
        lambda indices: _read_images(batches.data, records, indices),
        track_progress(chunks, label, "batches"),
    ):
        if batch.indices:
            texts += zip(batch.indices, generate(batch), strict=True)
    return sorted(
        (index, text) for part in hosts.all_gather(texts, share) for index, text in part
    )


def _read_ahead(read: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yield `read(item)` for each item; a thread reads one item ahead."""
    with futures.ThreadPoolExecutor(1) as pool:
        pending: futures.Future[U] | None = None
        for item in items:
            following = pool.submit(read, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _read_images(
    data: EvaluationSet, records: Sequence[int], indices: Sequence[int]
) -> GenerationBatch:
    """Read each image of some texts once; leave out texts with broken images."""
    pixels = {r: data.image(r) for r in dict.fromkeys(records[i] for i in indices)}
    images = {record: image for record, image in pixels.items() if image is not None}
    readable = [index for index in indices if records[index] in images]
    if not readable:
        return GenerationBatch([], {}, [])
    name = "features" if data.image_key == "features" else "images"
    rows = {record: row for row, record in enumerate(images)}
    return GenerationBatch(
        readable,
        {name: np.stack([*images.values()])},
        [rows[records[index]] for index in readable],
    )

"""Texts about the images of an evaluation set, written by all processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import TypeVar

import numpy as np

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.parallel import hosts
from blip2_jax.parallel.progress import track_progress

T = TypeVar("T")
U = TypeVar("U")


def written(
    data: EvaluationSet,
    places: Sequence[int],
    batch_size: int,
    share: hosts.Share,
    what: str,
    write: Callable[[dict[str, np.ndarray], list[int], list[int]], list[str]],
) -> list[tuple[int, str]]:
    """What is written about records: (index into `places`, text), in order.

    Args:
      share: of the places; every process returns what all have written.
      what: is done, for the progress shown.
      write: texts for images, their indices, and the image of each index: one that
        several share is there once.
    """
    mine = share.indices(len(places))
    batches = [mine[start:][:batch_size] for start in range(0, len(mine), batch_size)]
    texts: list[tuple[int, str]] = []
    for indices, images, image_of in _ahead(
        lambda batch: _readable(data, places, batch), track_progress(batches, what)
    ):
        if indices:
            texts += zip(indices, write(images, indices, image_of), strict=True)
    return sorted(
        (index, text) for part in hosts.all_gather(texts, share) for index, text in part
    )


def _ahead(read: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`read(item)` for each item, one further than is asked for, in a thread."""
    with futures.ThreadPoolExecutor(1) as pool:
        waiting: futures.Future[U] | None = None
        for item in items:
            following = pool.submit(read, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _readable(
    data: EvaluationSet, places: Sequence[int], indices: Sequence[int]
) -> tuple[list[int], dict[str, np.ndarray], list[int]]:
    """The indices into `places` whose images can be read; each image once; whose it is."""
    read = {place: data.image(place) for place in {places[i]: 0 for i in indices}}
    images = {place: image for place, image in read.items() if image is not None}
    found = [index for index in indices if places[index] in images]
    if not found:
        return [], {}, []
    key = "features" if data.image_key == "features" else "images"
    order = {place: number for number, place in enumerate(images)}
    image_of = [order[places[index]] for index in found]
    return found, {key: np.stack([*images.values()])}, image_of

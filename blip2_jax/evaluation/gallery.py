"""Photos and captions as retrieval takes them: each image once, all of its captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, Shaped
from numpy import ndarray as Array

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.text.tokenizers import QFormerTokenizer, clean_caption
from blip2_jax.parallel.hosts import Share


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The images of an evaluation set and their tokenised captions.

    Attributes:
      records: for each image the place of its first record in the set.
      text_ids, text_mask: all captions [M, T], cut to the longest.
      image_of_text: the image of each caption, a place in `records`.
      texts: the captions as they were tokenised.
    """

    records: list[int]
    text_ids: Int[Array, "texts T"]
    text_mask: Bool[Array, "texts T"]
    image_of_text: Int[Array, " texts"]
    texts: list[str]

    def image_batches(
        self, data: EvaluationSet, batch_size: int, share: Share | None = None
    ) -> Iterator[Shaped[Array, "B ..."]]:
        """Images, in order; one that cannot be read is blank, and counted by `data`.

        Args:
          share: the images of one process; none: all.
        """
        mine = (share or Share()).indices(len(self.records))
        for start in range(0, len(mine), batch_size):
            places = [self.records[index] for index in mine[start:][:batch_size]]
            yield data.stack_images([data.image(place) for place in places])


def make_gallery(
    data: EvaluationSet, tokenizer: QFormerTokenizer, length: int
) -> Gallery:
    """Join the records of each image; images without captions are left out.

    Args:
      data: the evaluation set.
      tokenizer: of the Q-Former.
      length: captions are cut to so many tokens, [CLS] and [SEP] included.

    Raises:
      ValueError: no image has a caption.
    """
    places: dict[int, int] = {}
    texts: list[str] = []
    owners: list[int] = []
    for place, record in enumerate(data.records):
        for caption in record.captions:
            first = places.setdefault(record.image_id, place)
            texts.append(clean_caption(caption))
            owners.append(first)
    if not texts:
        raise ValueError("retrieval needs captions, and no image has one")
    records = list(places.values())
    row = {place: index for index, place in enumerate(records)}
    ids, mask = tokenizer.encode(texts, length)
    longest = int(mask.sum(axis=1).max())
    image_of_text = np.array([row[owner] for owner in owners])
    return Gallery(records, ids[:, :longest], mask[:, :longest], image_of_text, texts)

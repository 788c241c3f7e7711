"""Length buckets: how far the texts of a step are padded, known before any image.

A step's bucket is the smallest that holds the longest text of its *global* batch, so
every process of a run pads alike and runs the same program, and there are no more
programs than buckets. Encoder-decoder batches have one bucket for input and target,
the longer of both deciding (each is cut to its own maximum too): no product of two
numbers of programs.

The texts are those that records alone tell (`TrainingRows.text`). A row whose image
turns out broken shows a substitute, of which other processes do not know: its text is
cut to the bucket, and loses its end where it is longer. So the bucket stays a function
of (seed, step, batch size), and the row one of (seed, position).
"""

from __future__ import annotations

from collections.abc import Sequence

from blip2_jax.data.rows import TrainingRows


class LengthBuckets:
    """The padded length of every step.

    Each process looks at texts of the whole global batch, drawn and tokenized one by
    one until one needs the last bucket: about 1/p of them, where a share p of texts
    does, and never more than the batch. A text costs about 0.5 ms from a tar with
    BERT's tokenizer (0.15 ms of it tokenization) where reading and cropping its image
    costs 8 ms.

    Attributes:
      batch_size: rows of the global batch.
    """

    def __init__(self, rows: TrainingRows, buckets: Sequence[int], batch_size: int):
        """`buckets` as `DataConfig.length_buckets`; none: always the full length."""
        self.batch_size = batch_size
        self._rows, self._buckets = rows, tuple(buckets)

    def at(self, step: int) -> int | None:
        """The bucket of a step; None = the full length.

        Raises:
          NoSubstitute: see `TrainingRows.text`.
        """
        if len(self._buckets) < 2:
            return None
        *shorter, last = self._buckets
        longest = 0
        start = step * self.batch_size
        for position in range(start, start + self.batch_size):
            text = self._rows.text(position)
            longest = max(longest, self._rows.format.length(text))
            if longest > shorter[-1]:
                return last
        return next(bucket for bucket in shorter if bucket >= longest)

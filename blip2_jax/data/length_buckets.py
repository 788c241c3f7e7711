"""Length buckets: the padded length of each step's texts.

The bucket of a step is the smallest that holds the longest text of its *global* batch.
All processes of a run therefore pad to the same length and run the same program, and
there are at most as many programs as buckets. An encoder-decoder batch has one bucket
for input and target, chosen by the longer of both (each is also truncated to its own
maximum), because two buckets would multiply the number of programs.

Lengths are computed from records, before images are read (`TrainingRows.text`). If the
image of a row turns out to be broken, a substitute takes its place, which the other
processes do not know; its text is truncated to the bucket. The bucket therefore is a
function of (seed, step, batch size), and a row is a function of (seed, position).
"""

from __future__ import annotations

from collections.abc import Sequence

from blip2_jax.data.rows import TrainingRows


class LengthBuckets:
    """The padded length of every step.

    Each process draws and tokenizes texts of the global batch until one needs the last
    bucket: about 1/p texts if a share p of them does, and at most the whole batch. A
    text from a tar costs about 0.5 ms with BERT's tokenizer (0.15 ms of it for the
    tokenizer); reading and cropping an image costs 8 ms.

    Attributes:
      batch_size: rows of the global batch.
    """

    def __init__(self, rows: TrainingRows, buckets: Sequence[int], batch_size: int):
        """Set the buckets (see `DataConfig.length_buckets`); without, never shorten."""
        self.batch_size = batch_size
        self._rows, self._buckets = rows, tuple(buckets)

    def at(self, step: int) -> int | None:
        """Return the bucket of a step; None stands for the full length.

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

"""Our contestants of the image pipeline: the pixels alone, and the whole data path."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np

from benchmarks import harness

_AHEAD = 4  # batches that may be ready when a measurement begins


class Images:
    """The training path of photos: decode, crop, flip; normalised as a batch."""

    def __init__(self, tars: Sequence[str], count: int, size: int):
        """Read the photos' bytes."""
        import jax

        from blip2_jax.data.images import ImageConfig
        from blip2_jax.models.vision.vit import normalize_images

        self._files = harness.photos(tars, count)
        self._config = ImageConfig(size=size)
        self._normalize = jax.jit(normalize_images, static_argnums=1)

    def versions(self) -> str:
        """Return the versions of the libraries that decode and resize."""
        import cv2
        import PIL

        return harness.versions(PIL.__name__, cv2.__name__)

    def load(self, rows: int = 8) -> float:
        """Load all photos in batches; returns the seconds."""
        return harness.seconds(lambda: self._load(rows))[0]

    def _load(self, rows: int) -> None:
        from blip2_jax.data.images import decode_image, training_image

        rng = np.random.default_rng(0)
        for start in range(0, len(self._files), rows):
            ready = [
                training_image(
                    decode_image(data, key, self._config.at_least), self._config, rng
                )
                for key, data in self._files[start : start + rows]
            ]
            self._normalize(np.stack(ready), "clip").block_until_ready()


class TrainingPath:
    """What a training run reads: tars, order, captions and their tokens, photos."""

    def __init__(self, tars: Sequence[str], count: int, size: int, rows: int = 8):
        """Open the stream of batches of `rows` rows, in threads of this process."""
        import jax

        from blip2_jax.data.pipeline import training_batches
        from blip2_jax.models.vision.vit import normalize_images

        self._directory = tempfile.TemporaryDirectory()
        spec = {
            "kind": "tars",
            "paths": list(tars),
            "index_directory": self._directory.name,
        }
        options = {
            "train": [spec],
            "image": {"size": size},
            "tokenizer": {"qformer": "shapes:bert"},
        }
        self._steps = count // rows
        self._stream = training_batches(options, "image_text", seed=0, batch_size=rows)
        self._normalize = jax.jit(normalize_images, static_argnums=1)

    def versions(self) -> str:
        """Return the version of the library that prefetches."""
        import importlib.metadata

        return f"grain {importlib.metadata.version('grain')}"

    def load(self) -> float:
        """Load as many photos as the tars hold; returns the seconds."""
        # Batches that were loaded while other contestants had their turn do not count.
        for _ in range(_AHEAD):
            next(self._stream)
        return harness.seconds(self._load)[0]

    def close(self) -> None:
        """End the threads."""
        self._stream.close()

    def _load(self) -> None:
        for _ in range(self._steps):
            self._normalize(next(self._stream)["image"], "clip").block_until_ready()

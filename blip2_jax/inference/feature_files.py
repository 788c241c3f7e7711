"""Features of all images of a data source, computed once and written to files.

    features.npy  float16 [images, P, D]
    keys.json     keys of the images, in the same order

The source kind "features" reads the directory (`data.sources.features`).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.convert.files.output import atomic_output
from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.parallel.progress import track_progress

Encode = Callable[[UInt8[Array, "B R R 3"]], Float[jax.Array, "B P D"]]


def write_features(
    encode: Encode,
    specs: Sequence[Mapping[str, Any]],
    output: pathlib.Path,
    image_size: int,
    batch_size: int = 32,
) -> EvaluationSet:
    """Encode each image of some sources once and write its features.

    Args:
      encode: computes the features of a batch.
      specs: source specs; records of one image give one row.
      output: directory, which appears only when it is complete.
      image_size: side of the encoder's images in pixels.
      batch_size: images per batch.

    Returns:
      The records, with the counts of broken ones. Broken images are left out.

    Raises:
      FileExistsError: the output exists.
      ValueError: the sources have no pixels, or an encoder's values do not fit float16.
      TooManyBrokenSamples: too many images are broken.
    """
    data = EvaluationSet(specs, image_size)
    if data.image_key != "image" or not data.records:
        raise ValueError("features are computed of images; the sources hold none")
    first = {record.image_id: i for i, record in reversed([*enumerate(data.records)])}
    is_first = np.zeros(len(data.records), bool)
    is_first[list(first.values())] = True
    with atomic_output(output) as folder:
        folder.mkdir(parents=True)
        keys: list[str] = []
        with (folder / "features.raw").open("wb") as file:
            steps = track_progress(
                range(-(-len(data.records) // batch_size)), "encoding", "batches"
            )
            for _, batch in zip(steps, data.image_batches(batch_size), strict=False):
                rows = batch["valid"] & is_first[batch["index"]]
                features = np.asarray(encode(batch["image"]))[rows].astype(np.float16)
                if not np.isfinite(features).all():
                    raise ValueError("the encoder's features exceed float16")
                file.write(features.tobytes())
                keys += [data.records[index].key for index in batch["index"][rows]]
        _add_header(folder, (len(keys), *features.shape[1:]))
        (folder / "keys.json").write_text(json.dumps(keys))
    return data


def _add_header(folder: pathlib.Path, shape: tuple[int, ...]) -> None:
    """Copy the raw values to `features.npy`, whose header has their number."""
    raw = folder / "features.raw"
    source = np.memmap(raw, np.float16, "r", shape=shape)
    np.save(folder / "features.npy", source)
    raw.unlink()

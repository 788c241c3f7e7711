"""`Blip2`, the base of the public model classes.

    model = blip2_jax.load("runs/stage2")
    model.caption(["a.jpg", "b.jpg"], num_beams=5)

`blip2_jax.load` returns a `Blip2Retriever` (stage 1) or a `Blip2Generator` (stage 2).
The classes are named after their uses, as in Hugging Face transformers
(`ForImageTextRetrieval`, `ForConditionalGeneration`). `Blip2Stage1` and `Blip2Stage2`
are the Flax modules inside them.

An image is a path, a URL, the bytes of a file, an open binary file, a PIL image or a
uint8 array [height, width, 3]; see `user_images.as_pixels`. Methods take one image or
several, as a list or an array, and return a list or an array with one row per image.
Inputs are padded to a few sizes to limit the number of compiled programs. A row's
result does not depend on the other rows.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float, Integer, Key, PyTree, Shaped, UInt32
from numpy import ndarray as Array

from blip2_jax.data.dataclass_options import is_integer
from blip2_jax.data.text.tokenizers import QFormerTokenizer
from blip2_jax.generation.decoder import Decoded
from blip2_jax.generation.decoding_config import (
    ANSWER_DEFAULTS,
    CAPTION_DEFAULTS,
    DecodingConfig,
)
from blip2_jax.generation.lavis_defaults import lavis_defaults
from blip2_jax.inference import embeddings, inputs
from blip2_jax.inference.describe import describe_model
from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.parallel import hosts, sharding

# Token arrays of a batch of prompts; their number depends on the model.
PromptArrays = tuple[Shaped[Array, "B ..."], ...]
# The questions that the Q-Former reads for each row: one, or one per image of the row.
Questions = Sequence[Sequence[str]]


class Blip2(abc.ABC):
    """A model with its parameters and tokenizers; base of both stages.

    Attributes:
      model: the Flax module.
      params: its parameters. If they are sharded over a mesh, rows are sharded too.
      prompt: default start of captions.
      batch_size: number of rows of the largest compiled program; larger inputs are
        processed in several batches.
      origin: where the model comes from, for `repr`; "" if it was built from parts.
    """

    model: Blip2Base
    _accepts_several_images: ClassVar[bool]

    def __init__(
        self,
        model: Blip2Base,
        params: PyTree,
        qformer_tokenizer: QFormerTokenizer | None,
        prompt: str,
        batch_size: int,
    ):
        """Set the attributes that both stages share.

        Raises:
          ValueError: `batch_size` is below 1.
        """
        inputs.check_batch_size(batch_size)
        self.model, self.params = model, params
        self.prompt, self.batch_size = prompt, batch_size
        self.origin = ""
        self._qformer_tokenizer = qformer_tokenizer

    def __repr__(self) -> str:
        return describe_model(type(self).__name__, self.origin, self.model, self.params)

    def caption(
        self,
        images: Any = None,
        prompt: str | Sequence[str] | None = None,
        *,
        features: Any = None,
        seed: int = 0,
        sample_ids: Sequence[int] | None = None,
        decoding: str = "",
        **settings: Any,
    ) -> list[Any]:
        """Describe images.

        Args:
          images: images as described in the module docstring. For a `Blip2Generator`, a
            row may hold several images, which precede the prompt one after the other:
            a list of lists of equal length, or an array [B, images, height, width, 3].
          prompt: start of the captions, one for all or one per row; None selects the
            model's own.
          features: [P, D] or [B, P, D], in place of images, for a model that was
            trained on features.
          seed: seed for `sample=True`.
          sample_ids: a number for each row, below 2**32, by which its samples are
            drawn; None: its index. Part of a longer list has the same samples with the
            numbers of the whole list.
          decoding: settings to start from: "" for this package's defaults, "original"
            for those of LAVIS's model methods, "original_coco" or "original_nocaps" for
            those of its evaluations (see `generation.lavis_defaults`).
          **settings: fields of `DecodingConfig` to change.

        Returns:
          A string per row, or a list of strings per row if `num_return_sequences` > 1.

        Raises:
          ValueError: inputs or settings are wrong.
        """
        config = self._decoding_config(decoding, "generate", settings)
        prompts = self.prompt if prompt is None else prompt
        rows = self._image_arrays(images, features, self._accepts_several_images)
        return self._generate_texts(rows, prompts, config, seed, sample_ids=sample_ids)

    def features(
        self, images: Any = None, *, mode: str = "image", features: Any = None
    ) -> dict[str, Array]:
        """Compute embeddings of images.

        Args:
          images: images as described in the module docstring.
          mode: "image".
          features: as in `caption`.

        Returns:
          `image_embeds` [B,Q,D], and their projections `image_embeds_proj`. A
          `Blip2Retriever` projects to unit vectors [B,Q,C], a `Blip2Generator` to the
          language model's input embeddings [B,Q,E].
        """
        if mode != "image":
            raise ValueError(f"mode {mode!r}: a {type(self).__name__} has mode 'image'")
        return self._run_batches(
            embeddings.image_features, self._image_arrays(images, features)
        )

    def attention_maps(
        self, images: Any = None, *, features: Any = None
    ) -> Float[Array, "B Q P"]:
        """Compute the queries' cross-attention to the image tokens.

        The maps are averaged over blocks and heads, because captions also read the
        queries of earlier blocks, and each sums to one. The patches are the
        last image tokens, row by row; class token and registers precede them.

        Args:
          images: images as described in the module docstring.
          features: as in `caption`.
        """
        rows = self._image_arrays(images, features)
        return self._run_batches(embeddings.attention_maps, rows)["attention"]

    @property
    def qformer_tokenizer(self) -> QFormerTokenizer:
        """Tokenizer of the texts that the Q-Former reads or generates.

        Raises:
          ValueError: the model was built without one.
        """
        if self._qformer_tokenizer is None:
            raise ValueError("this model was built without a qformer_tokenizer")
        return self._qformer_tokenizer

    @property
    @abc.abstractmethod
    def _family(self) -> str:
        """Key of this model in `lavis_defaults`."""

    @abc.abstractmethod
    def _prompt_arrays(
        self, prompts: Sequence[str], questions: Questions | None = None
    ) -> PromptArrays:
        """Tokenize prompts, and the questions that the Q-Former reads."""

    @abc.abstractmethod
    def _check_lengths(
        self, prompt_arrays: PromptArrays, images_per_row: int, config: DecodingConfig
    ) -> None:
        """Check that prompts and new tokens fit the model.

        Raises:
          ValueError: they have more tokens than the model has positions.
        """

    @abc.abstractmethod
    def _decode_batch(
        self,
        images: Shaped[Array, "B ..."],
        prompt_arrays: PromptArrays,
        config: DecodingConfig,
        keys: Key[jax.Array, " B"] | None = None,
    ) -> Decoded:
        """Generate tokens for one batch of images (or features) and prompts.

        Returns:
          The results in host memory.
        """

    @abc.abstractmethod
    def _detokenize(self, ids: Shaped[Array, " N"]) -> str:
        """Convert generated tokens to text."""

    def _decoding_config(
        self, name: str, method: str, settings: dict[str, Any]
    ) -> DecodingConfig:
        """Look up the settings called `name` for a method and change some of them."""
        source, _, evaluation = name.partition("_")
        if not name:
            config = ANSWER_DEFAULTS if method == "answer" else CAPTION_DEFAULTS
        elif source == "original":
            config = lavis_defaults(evaluation or method, self._family)
        else:
            raise ValueError(
                f"decoding {name!r}: there are '', 'original', 'original_coco' and "
                "'original_nocaps'"
            )
        return config.replace(**settings)

    def _image_arrays(
        self, images: Any, features: Any, several: bool = False
    ) -> Shaped[Array, "B ..."]:
        """Convert images or features to the input of the module's `encode_image`."""
        vision = self.model.config.vision
        return inputs.as_model_images(vision, images, features, several=several)

    def _generate_texts(
        self,
        images: Shaped[Array, "B ..."],
        prompts: str | Sequence[str],
        config: DecodingConfig,
        seed: int,
        questions: Questions | None = None,
        image_of: Sequence[int] | None = None,
        sample_ids: Sequence[int] | None = None,
    ) -> list[Any]:
        """Generate texts for prompts about images.

        Args:
          images: images or features; each image is encoded once.
          prompts: one for all rows, or one per row.
          config: static settings.
          seed: seed of sampling; a row's samples depend on it and the row's number.
          questions: see `Questions`.
          image_of: index of each row's image; None pairs rows with images.
          sample_ids: see `caption`.
        """
        check_seed(seed)
        rows: dict[str, Any] = {
            "images": inputs.image_indices(image_of, len(images)),
            "prompts": inputs.as_texts(prompts, "prompts"),
        }
        if questions is not None:
            rows["questions"] = questions
        indices, *columns = inputs.align(**rows)
        indices, prompt_arrays = np.array(indices), self._prompt_arrays(*columns)
        numbers = _row_numbers(sample_ids, len(indices))
        is_features = isinstance(self.model.config.vision, FeaturesConfig)
        has_several = images.ndim > (3 if is_features else 4)
        images_per_row = images.shape[1] if has_several else 1
        self._check_lengths(prompt_arrays, images_per_row, config)
        # Features need no encoder, and rows of several images (5 axes) share none.
        needs_encoder = images.ndim == 4 and images.dtype == np.uint8
        if len(indices) > len(images) and needs_encoder:
            images = self._encode_images(images)
        texts: list[list[str]] = []
        for batch, size in inputs.batches(len(indices), self.batch_size):
            padded = [inputs.pad_batch(array[batch], size) for array in prompt_arrays]
            numbers_of_batch = inputs.pad_batch(numbers[batch], size)
            keys = row_keys(seed, numbers_of_batch) if config.sample else None
            image_batch = inputs.pad_batch(images[indices[batch]], size)
            decoded = self._decode_batch(image_batch, tuple(padded), config, keys)
            texts += self._detokenize_rows(decoded, batch.stop - batch.start)
        return texts if config.num_return_sequences > 1 else [row[0] for row in texts]

    def _detokenize_rows(self, decoded: Decoded, count: int) -> list[list[str]]:
        """Convert the results of the first `count` rows to texts, best first."""
        rows = zip(decoded.ids[:count], decoded.lengths[:count], strict=True)
        return [
            [self._detokenize(ids[:length]) for ids, length in zip(*row, strict=True)]
            for row in rows
        ]

    def _encode_images(self, images: Shaped[Array, "B ..."]) -> Float[Array, "B P D"]:
        """Run the image encoder for images that several rows share."""
        return self._run_batches(embeddings.encode_image, images)["features"]

    def _run_batches(
        self,
        function: Callable[..., dict[str, jax.Array]],
        *arrays: Shaped[Array, "B ..."],
    ) -> dict[str, Array]:
        """Run a compiled function of `embeddings` on all rows, in batches."""
        outputs = []
        for batch, size in inputs.batches(len(arrays[0]), self.batch_size):
            padded = [inputs.pad_batch(array[batch], size) for array in arrays]
            placed = sharding.place_rows_like(self.params, padded)
            output = hosts.to_host(function(self.model, self.params, *placed))
            rows = batch.stop - batch.start
            outputs.append({name: array[:rows] for name, array in output.items()})
        names = outputs[0]
        return {name: np.concatenate([o[name] for o in outputs]) for name in names}


def check_seed(seed: int) -> None:
    """Check a seed of sampling.

    Raises:
      ValueError: it is no whole number of 64 bits.
    """
    if not is_integer(seed) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed={seed!r}: expected a whole number of 64 bits")


def _row_numbers(sample_ids: Sequence[int] | None, rows: int) -> UInt32[Array, " rows"]:
    """Return the numbers by which the samples of rows are drawn.

    Raises:
      ValueError: there is not one number below 2**32 for each row.
    """
    if sample_ids is None:
        return np.arange(rows, dtype=np.uint32)
    numbers = np.asarray(sample_ids)
    is_number = numbers.dtype.kind in "iu" and numbers.shape == (rows,)
    if not is_number or numbers.min() < 0 or numbers.max() >= 2**32:
        raise ValueError(
            f"sample_ids are {rows} whole numbers below 2**32, one for each row, not "
            f"{sample_ids!r}"
        )
    return numbers.astype(np.uint32)


def row_keys(seed: int, numbers: Integer[Array, " B"]) -> Key[jax.Array, " B"]:
    """Make a random key for each row of a batch, from its number."""
    return _fold_in_rows(jax.random.key(seed), numbers.astype(np.uint32))


@jax.jit
def _fold_in_rows(
    key: Key[jax.Array, ""], numbers: UInt32[jax.Array, " B"]
) -> Key[jax.Array, " B"]:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)

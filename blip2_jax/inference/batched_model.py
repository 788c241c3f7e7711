"""`BatchedModel`, the base of `Blip2`: batches of rows through compiled programs."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Key, PyTree, Shaped
from numpy import ndarray as Array

from blip2_jax.data.text.chat import Prompt
from blip2_jax.data.text.tokenizers import QFormerTokenizer, pad_rows
from blip2_jax.generation.decoder import Decoded
from blip2_jax.generation.decoding_config import (
    ANSWER_DEFAULTS,
    CAPTION_DEFAULTS,
    DecodingConfig,
)
from blip2_jax.generation.lavis_defaults import lavis_defaults
from blip2_jax.inference import embeddings, inputs, scoring
from blip2_jax.inference.row_keys import check_seed, row_keys, row_numbers
from blip2_jax.inference.word_attention import TargetArrays
from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.nn.kv_cache import PrefixKV
from blip2_jax.parallel import hosts, sharding

# Token arrays of a batch of prompts; their number depends on the model.
PromptArrays = tuple[Shaped[Array, "B ..."], ...]
# The questions that the Q-Former reads for each row: one, or one per image of the row.
Questions = Sequence[Sequence[str]]
# Logits of the first new token, and the KV cache of what precedes it.
Prefilled = tuple[Float[jax.Array, "B V"], PrefixKV]


class BatchedModel(abc.ABC):
    """A model with its parameters and tokenizers, and the loops over batches.

    A stage provides the abstract methods; the loops are the same for both.

    Attributes:
      model: the Flax module.
      params: its parameters.
      batch_size: number of rows of the largest compiled program.
    """

    model: Blip2Base
    params: PyTree
    batch_size: int
    _qformer_tokenizer: QFormerTokenizer | None

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
        self, prompts: Sequence[Prompt], questions: Questions | None = None
    ) -> PromptArrays:
        """Tokenize prompts, and the questions that the Q-Former reads."""

    @abc.abstractmethod
    def _text_ids(
        self, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> list[list[int]]:
        """Tokenize the text that follows each prompt, and its end token."""

    @abc.abstractmethod
    def _target_arrays(
        self, prompt_arrays: PromptArrays, prompt: Prompt, text: str
    ) -> TargetArrays:
        """Build the arrays from which the model predicts a text after a prompt."""

    @abc.abstractmethod
    def _check_lengths(
        self, prompt_arrays: PromptArrays, images_per_row: int, new_tokens: int
    ) -> None:
        """Check that prompts and new tokens fit the model.

        Raises:
          ValueError: they have more tokens than the model has positions.
        """

    @abc.abstractmethod
    def _prefill(
        self, images: Shaped[Array, "B ..."], prompt_arrays: PromptArrays
    ) -> Prefilled:
        """Read one batch of images (or features) and prompts."""

    @abc.abstractmethod
    def _decode(
        self,
        prefilled: Prefilled,
        prompt_arrays: PromptArrays,
        config: DecodingConfig,
        keys: Key[jax.Array, " B"] | None,
    ) -> Decoded:
        """Generate tokens after a prefill.

        Returns:
          The results in host memory.
        """

    @property
    def _unstacked_weights(self) -> PyTree:
        """Copy of the language model's weights for fast CPU decoding, or None."""
        return None

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
        prompts: Sequence[Prompt],
        config: DecodingConfig,
        seed: int,
        questions: Questions | None = None,
        image_of: Sequence[int] | None = None,
        sample_ids: Sequence[int] | None = None,
        return_scores: bool = False,
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
          return_scores: see `caption`.
        """
        check_seed(seed)
        rows: dict[str, Any] = {
            "images": inputs.image_indices(image_of, len(images)),
            "prompts": prompts,
        }
        if questions is not None:
            rows["questions"] = questions
        indices, *columns = inputs.align(**rows)
        indices, prompt_arrays = np.array(indices), self._prompt_arrays(*columns)
        numbers = row_numbers(sample_ids, len(indices))
        self._check_lengths(
            prompt_arrays, self._images_per_row(images), config.max_new_tokens
        )
        images = self._encode_shared(images, len(indices))
        texts: list[list[Any]] = []
        for batch, size in inputs.batches(len(indices), self.batch_size):
            padded = [inputs.pad_batch(array[batch], size) for array in prompt_arrays]
            numbers_of_batch = inputs.pad_batch(numbers[batch], size)
            keys = row_keys(seed, numbers_of_batch) if config.sample else None
            image_batch = inputs.pad_batch(images[indices[batch]], size)
            decoded = self._decode_batch(
                image_batch, tuple(padded), config, keys, return_scores
            )
            texts += self._detokenize_rows(decoded, batch.stop - batch.start)
        return texts if config.num_return_sequences > 1 else [row[0] for row in texts]

    def _decode_batch(
        self,
        images: Shaped[Array, "B ..."],
        prompt_arrays: PromptArrays,
        config: DecodingConfig,
        keys: Key[jax.Array, " B"] | None = None,
        return_scores: bool = False,
    ) -> Decoded:
        """Generate tokens for one batch of images (or features) and prompts.

        Returns:
          The results in host memory, with `log_probs` if `return_scores`.
        """
        prefilled = self._prefill(images, prompt_arrays)
        decoded = self._decode(prefilled, prompt_arrays, config, keys)
        if not return_scores:
            return decoded
        tokens = decoded.ids.shape[2]
        padding = inputs.padded_length(tokens) - tokens
        ids = np.pad(decoded.ids, ((0, 0), (0, 0), (0, padding)))
        length = int(decoded.lengths.max())
        log_probs: Any = self._token_log_probs(prefilled, ids, length)
        return dataclasses.replace(decoded, log_probs=log_probs[..., :tokens])

    def _detokenize_rows(self, decoded: Decoded, count: int) -> list[list[Any]]:
        """Convert the results of the first `count` rows to texts, best first."""
        ids: Any = decoded.ids
        return [
            [
                self._detokenize(ids[row, i, :length])
                if decoded.log_probs is None
                else self._scored_text(decoded, (row, i), length)
                for i, length in enumerate(decoded.lengths[row])
            ]
            for row in range(count)
        ]

    def _scored_text(
        self, decoded: Decoded, place: tuple[int, int], length: int
    ) -> scoring.ScoredText:
        """Convert the result at `place` (row, sequence) of `length` tokens."""
        assert decoded.log_probs is not None
        ids = np.asarray(decoded.ids[place][:length])
        log_probs = np.asarray(decoded.log_probs[place][:length])
        return scoring.ScoredText(
            self._detokenize(ids),
            float(decoded.scores[place]),
            float(log_probs.sum()),
            ids,
            log_probs,
        )

    def _score_texts(
        self,
        images: Shaped[Array, "B ..."],
        texts: Sequence[str],
        prompts: Sequence[Prompt],
        questions: Questions | None = None,
        image_of: Sequence[int] | None = None,
    ) -> scoring.TextScores:
        """Compute the log-probabilities of texts that follow prompts about images.

        Rows that differ only in their text share one prefix: its image is encoded and
        its prompt is read once.

        Args:
          images: images or features.
          texts: one for all rows, or one per row.
          prompts: one for all rows, or one per row.
          questions: see `Questions`.
          image_of: index of each row's image; None pairs rows with images.
        """
        rows: dict[str, Any] = {
            "texts": texts,
            "images": inputs.image_indices(image_of, len(images)),
            "prompts": prompts,
        }
        if questions is not None:
            rows["questions"] = [tuple(own) for own in questions]
        texts, *columns = inputs.align(**rows)
        groups = scoring.group_rows(list(zip(*columns, strict=True)))
        firsts = [group[0] for group in groups]
        indices, prompts, *more = ([column[i] for i in firsts] for column in columns)
        prompt_arrays = self._prompt_arrays(prompts, *more)
        token_rows = self._text_ids(columns[1], texts)
        longest = max(map(len, token_rows))
        ids, mask = pad_rows(token_rows, inputs.padded_length(longest), 0)
        self._check_lengths(prompt_arrays, self._images_per_row(images), longest)
        images = self._encode_shared(images, len(groups))
        largest = max(map(len, groups))
        width = min(1 << (largest - 1).bit_length(), self.batch_size)
        log_probs = np.zeros(ids.shape, np.float32)
        for batch, size in inputs.batches(len(groups), self.batch_size // width):
            padded = [inputs.pad_batch(array[batch], size) for array in prompt_arrays]
            image_batch = inputs.pad_batch(images[np.array(indices[batch])], size)
            prefilled = self._prefill(image_batch, tuple(padded))
            for block in scoring.text_blocks(groups[batch], width):
                length = int(mask[block].sum(axis=2).max())
                block_ids = inputs.pad_batch(ids[block], size)
                scores = self._token_log_probs(prefilled, block_ids, length)
                log_probs[block] = scores[: len(block)]
        return scoring.text_scores(ids, mask, log_probs)

    def _token_log_probs(
        self, prefilled: Prefilled, ids: Int[Array, "B W N"], length: int
    ) -> Float[Array, "B W N"]:
        """Score the first `length` tokens of texts after a prefill."""
        log_probs = scoring.token_log_probs(
            self.model,
            self.params,
            *prefilled,
            sharding.place_rows_like(self.params, ids),
            np.int32(length),
            self._unstacked_weights,
        )
        return hosts.to_host(log_probs)

    def _images_per_row(self, images: Shaped[Array, "B ..."]) -> int:
        """Return the number of images (or features) in a row."""
        is_features = isinstance(self.model.config.vision, FeaturesConfig)
        return images.shape[1] if images.ndim > (3 if is_features else 4) else 1

    def _encode_shared(
        self, images: Shaped[Array, "B ..."], rows: int
    ) -> Shaped[Array, "B ..."]:
        """Run the image encoder if there are more rows than images.

        Features need no encoder, and rows of several images (5 axes) share none.
        """
        needs_encoder = images.ndim == 4 and images.dtype == np.uint8
        return (
            self._encode_images(images)
            if needs_encoder and rows > len(images)
            else images
        )

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

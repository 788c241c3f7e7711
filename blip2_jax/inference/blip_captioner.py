"""`BlipCaptioner`: several captions an image by BLIP's captioner (Li et al. 2022).

    captioner = blip2_jax.load_captioner("Salesforce/blip-image-captioning-large")
    captioner.caption(["a.jpg", "b.jpg"], num_captions=10, seed=0)

All captions of an image share its cross-attention keys and values and the cache of the
prompt. Images are processed in batches of a few sizes, and a batch is finished when all
of its captions are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Key, PyTree, UInt8
from numpy import ndarray as Array

from blip2_jax.convert.vocabulary import check_rows
from blip2_jax.data.dataclass_options import is_integer
from blip2_jax.data.text.tokenizers import QFormerTokenizer
from blip2_jax.generation.decoder import Decoded
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.generation.lavis_defaults import blip_defaults
from blip2_jax.inference import inputs, programs
from blip2_jax.inference.decoding_program import decode_tokens
from blip2_jax.inference.row_keys import check_seed, row_keys
from blip2_jax.models.blip import Blip
from blip2_jax.nn.kv_cache import PrefixKV

PROMPT = "a picture of "  # the prompt of the authors, with which the models are trained
MAX_INDEX = 2**31 - 1


class BlipCaptioner:
    """BLIP's captioner with its parameters and tokenizer.

    Attributes:
      model: the Flax module.
      params: its parameters.
      tokenizer: BERT's.
      prompt: start of all captions; it is not part of the results.
      batch_size: number of images of the largest compiled program.
      origin: where the model comes from.
    """

    def __init__(
        self,
        model: Blip,
        params: PyTree,
        tokenizer: QFormerTokenizer,
        *,
        prompt: str = PROMPT,
        batch_size: int = 16,
        origin: str = "",
    ):
        """Build a captioner from its parts; `load_captioner` does so from files.

        Raises:
          ValueError: the tokenizer is not that of the model, or `batch_size` is below
            1.
        """
        inputs.check_batch_size(batch_size)
        _check_tokenizer(tokenizer, model)
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.prompt, self.batch_size, self.origin = prompt, batch_size, origin

    def __repr__(self) -> str:
        return f"BlipCaptioner({self.origin or 'built from parts'})"

    def caption(
        self,
        images: Any,
        num_captions: int = 10,
        *,
        sample: bool = True,
        top_p: float = 0.9,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        max_length: int = 20,
        min_length: int = 5,
        **settings: Any,
    ) -> list[list[str]]:
        """Describe images, several times each.

        Args:
          images: one image (see `blip2_jax.inference.user_images.as_pixels`) or
            several.
          num_captions: captions of each image.
          sample: nucleus sampling; False: beam search, with the best caption first and
            at least 3 beams.
          top_p: share of the probability that sampling keeps.
          seed: seed of sampling.
          indices: number of each image, such as its place in a data set; None: 0, 1,
            2, ... The samples of an image depend on `seed`, its number and nothing
            else.
          max_length: longest caption in tokens; the prompt, [DEC] and the end token
            count, as in the authors' code.
          min_length: number of tokens from which on a caption may end, counted alike.
          **settings: fields of `DecodingConfig` to change.

        Returns:
          `num_captions` captions for each image, without the prompt.

        Raises:
          ValueError: inputs or settings are wrong.
        """
        check_seed(seed)
        start = self._start_ids()
        config = _decoding_config(
            len(start), num_captions, sample, max_length, min_length
        ).replace(**({"top_p": top_p} if sample else {}), **settings)
        self._check_length(len(start), config)
        pixels = inputs.as_images(images, self.model.config.vision.image_size)
        numbers = _image_numbers(indices, len(pixels))
        captions: list[list[str]] = []
        for batch, size in inputs.batches(len(pixels), self.batch_size):
            # Padding repeats the last image with its key: it takes no further steps.
            numbers_of_batch = inputs.pad_batch(numbers[batch], size)
            keys = row_keys(seed, numbers_of_batch) if config.sample else None
            decoded = self._decode_batch(
                inputs.pad_batch(pixels[batch], size), start, config, keys
            )
            captions += self._texts(start, decoded, batch.stop - batch.start)
        return captions

    def _start_ids(self) -> list[int]:
        """Return [DEC] and the tokens of the prompt."""
        words = self.tokenizer.encode_words(self.prompt)
        return [self.model.config.text.start_id, *words]

    def _check_length(self, prompt_tokens: int, config: DecodingConfig) -> None:
        """Check that prompt and new tokens fit the position table."""
        limit = self.model.config.text.max_positions
        if prompt_tokens + config.max_new_tokens > limit:
            raise ValueError(
                f"{prompt_tokens} prompt tokens and max_new_tokens="
                f"{config.max_new_tokens} exceed this model's {limit} positions"
            )

    def _decode_batch(
        self,
        images: UInt8[Array, "B R R 3"],
        start: Sequence[int],
        config: DecodingConfig,
        keys: Key[jax.Array, " B"] | None,
    ) -> Decoded:
        """Generate the tokens of one batch of images."""
        text = self.model.config.text
        ids = np.tile(np.array(start, np.int32), (len(images), 1))
        logits, prefix = prefill_captioner(self.model, self.params, images, ids)
        return decode_tokens(
            self.model,
            "text_decoder",
            self.params,
            logits,
            prefix,
            config,
            eos_id=text.end_id,
            pad_id=text.pad_id,
            prompt_tokens=len(start),
            history=jax.numpy.asarray(ids),
            keys=keys,
        )

    def _texts(
        self, start: Sequence[int], decoded: Decoded, count: int
    ) -> list[list[str]]:
        """Convert the results of the first `count` images to texts, best first."""
        rows = zip(decoded.ids[:count], decoded.lengths[:count], strict=True)
        return [
            [
                self._caption_text(start, ids[:length])
                for ids, length in zip(*row, strict=True)
            ]
            for row in rows
        ]

    def _caption_text(self, start: Sequence[int], ids: Int[Array, " N"]) -> str:
        """Return the text after the prompt.

        The two are decoded together, because a first piece of a word would belong to
        the last word of the prompt.
        """
        text = self.tokenizer.decode([*start, *ids])
        return text[len(self.tokenizer.decode(start)) :].strip()


def _check_tokenizer(tokenizer: QFormerTokenizer, model: Blip) -> None:
    """Check that the tokenizer's ids are those of the model.

    Raises:
      ValueError: they are not; the message has both.
    """
    text = model.config.text
    check_rows("captioner", tokenizer.vocab_size, text.vocab_size)
    for name, theirs, ours in (
        ("[SEP]", tokenizer.sep_id, text.end_id),
        ("[PAD]", tokenizer.pad_id, text.pad_id),
    ):
        if theirs != ours:
            raise ValueError(
                f"{name} is {theirs} in the tokenizer and {ours} in the captioner: "
                "choose the tokenizer of this model"
            )


def _decoding_config(
    prompt_tokens: int,
    num_captions: int,
    sample: bool,
    max_length: int,
    min_length: int,
) -> DecodingConfig:
    """Return BLIP's settings for a number of captions."""
    config = blip_defaults(
        prompt_tokens, sample=sample, max_length=max_length, min_length=min_length
    )
    beams = config.num_beams if sample else max(config.num_beams, num_captions)
    return config.replace(num_beams=beams, num_return_sequences=num_captions)


def _image_numbers(indices: Sequence[int] | None, count: int) -> Int[Array, " B"]:
    """Return the number of each image, from which its keys are made.

    Raises:
      ValueError: a number is impossible, or there are not as many as images.
    """
    if indices is None:
        return np.arange(count)
    wrong = [i for i in indices if not (is_integer(i) and 0 <= i <= MAX_INDEX)]
    if wrong:
        raise ValueError(f"indices hold {wrong[0]!r}: expected 0 to {MAX_INDEX}")
    if len(indices) != count:
        raise ValueError(f"{len(indices)} indices for {count} images")
    return np.array(indices, np.int64)


# Prefill and decoding are compiled separately, so that other decoding settings do not
# recompile the prefill, which contains the image encoder.
@programs.compile_function(static=("model",))
def prefill_captioner(
    model: Blip,
    params: PyTree,
    images: UInt8[jax.Array, "B R R 3"],
    ids: Int[jax.Array, "B T"],
) -> tuple[Float[jax.Array, "B V"], PrefixKV]:
    """Run a captioner up to the logits of the first new token.

    Args:
      model: Flax module.
      params: its parameters.
      images: uint8 or normalised images.
      ids: [DEC] and the tokens of the prompt.
    """
    return model.bind({"params": params}).prefill(images, ids)

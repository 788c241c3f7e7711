"""`Blip2Retriever`, a stage-1 model: match, embed and caption with the Q-Former."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Key, PyTree, Shaped
from numpy import ndarray as Array

from blip2_jax.data.text.chat import Prompt
from blip2_jax.data.text.tokenizers import QFormerTokenizer, pad_rows
from blip2_jax.generation.decoder import Decoded
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.inference import embeddings, inputs, qformer_programs
from blip2_jax.inference.batched_model import Prefilled, PromptArrays, Questions
from blip2_jax.inference.decoding_program import decode_tokens
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.word_attention import TargetArrays
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.nn.similarity import max_query_similarity
from blip2_jax.parallel import sharding

MODES = ("image", "text", "multimodal")
PAIRS = ("rows", "all")


class Match(NamedTuple):
    """Scores of image-text pairs, [B], or [images, texts] for all pairs.

    Attributes:
      itc: cosine between the text and its nearest query (contrastive head).
      itm: probability that image and text match (matching head).
    """

    itc: Float[Array, "..."]
    itm: Float[Array, "..."]


class Matching(NamedTuple):
    """Scores of the matching head for image-text pairs.

    Attributes:
      probability: that image and text match, `Match.itm`.
      logit: of "match". Retrieval ranks by this plus the cosine, as the original does.
    """

    probability: Float[Array, " B"]
    logit: Float[Array, " B"]


class Blip2Retriever(Blip2):
    """A stage-1 model: image-text matching, embeddings and captions."""

    model: Blip2Stage1
    _accepts_several_images = False

    def __init__(
        self,
        model: Blip2Stage1,
        params: PyTree,
        *,
        qformer_tokenizer: QFormerTokenizer | None = None,
        prompt: str = "",
        batch_size: int = 32,
        absent: Sequence[str] = (),
    ):
        """Build a model from its parts; `blip2_jax.load` does so from files.

        Args:
          model: Flax module.
          params: its parameters; see `Blip2`.
          qformer_tokenizer: tokenizer of all texts.
          prompt: default start of captions.
          batch_size: see `Blip2`.
          absent: patterns of the paths of parameters that have no values.
        """
        super().__init__(model, params, qformer_tokenizer, prompt, batch_size)
        self._absent = tuple(absent)

    def match(
        self,
        images: Any = None,
        texts: str | Sequence[str] = (),
        *,
        pairs: str = "rows",
        features: Any = None,
    ) -> Match:
        """Score image-text pairs.

        Args:
          images: images as described in the module docstring of
            `blip2_jax.inference.model`.
          texts: one text or several.
          pairs: "rows" scores image i with text i; one image goes with all texts, and
            one text with all images. "all" scores every image with every text.
          features: as in `caption`.

        Returns:
          One score per pair: [B], or with `pairs="all"` a matrix [images, texts].
        """
        if pairs not in PAIRS:
            raise ValueError(f"pairs {pairs!r}: there are {', '.join(PAIRS)}")
        rows = self._image_arrays(images, features)
        texts = inputs.as_texts(texts, "texts")
        if pairs == "all":
            return self._match_all(rows, *self._text_arrays(texts))
        rows, texts = inputs.align(images=rows, texts=texts)
        scores = self._run_batches(
            embeddings.match_scores, rows, *self._text_arrays(texts)
        )
        return Match(scores["itc"], scores["itm"])

    def match_head(
        self,
        images: Any = None,
        texts: str | Sequence[str] = (),
        *,
        features: Any = None,
    ) -> Matching:
        """Score image-text pairs by the matching head alone.

        Args:
          images: as in `match`.
          texts: one for all images, or one per image.
          features: as in `caption`.
        """
        rows = self._image_arrays(images, features)
        rows, texts = inputs.align(images=rows, texts=inputs.as_texts(texts, "texts"))
        scores = self._run_batches(
            embeddings.matching_scores, rows, *self._text_arrays(texts)
        )
        return Matching(scores["itm"], scores["logit"])

    def image_text_similarity(
        self, images: Any, texts: Sequence[Sequence[str]], *, score: str = "itc"
    ) -> list[Float[Array, " texts"]]:
        """Score several texts of each image. Each image is encoded once.

        Args:
          images: as in `match`.
          texts: the texts of each image. Tokens that exceed the Q-Former's positions
            are cut off.
          score: "itc" or "itm"; see `Match`.

        Returns:
          The scores of each image's texts.
        """
        if score not in Match._fields:
            raise ValueError(f"score {score!r}: there are {', '.join(Match._fields)}")
        rows = self._image_arrays(images, None)
        if len(texts) != len(rows):
            raise ValueError(f"{len(rows)} images, but texts of {len(texts)}")
        rows = self._encode_images(rows)
        all_texts = inputs.as_texts([text for own in texts for text in own], "texts")
        ids, mask = self._text_arrays(all_texts, truncate=True)
        ends = np.cumsum([len(own) for own in texts])
        own_texts = [
            slice(end - len(own), end) for own, end in zip(texts, ends, strict=True)
        ]
        if score == "itm":
            return [
                self._match_texts(row, ids[own], mask[own])
                for row, own in zip(rows, own_texts, strict=True)
            ]
        similarity = self._contrast_all(rows, ids, mask)
        return [row[own] for row, own in zip(similarity, own_texts, strict=True)]

    def _contrast_all(
        self,
        images: Shaped[Array, "B ..."],
        ids: Int[Array, "texts T"],
        mask: Bool[Array, "texts T"],
    ) -> Float[Array, "B texts"]:
        """Score every image with every text by the contrastive head."""
        vectors: Any = self._run_batches(embeddings.text_vectors, ids, mask)["vectors"]
        queries: Any = self._run_batches(embeddings.image_features, images)
        return np.asarray(max_query_similarity(queries["image_embeds_proj"], vectors))

    def _match_all(
        self,
        images: Shaped[Array, "B ..."],
        ids: Int[Array, "texts T"],
        mask: Bool[Array, "texts T"],
    ) -> Match:
        """Score every image with every text.

        Each image and each text is encoded once. Features are held for one batch of
        images at a time.
        """
        vectors: Any = self._run_batches(embeddings.text_vectors, ids, mask)["vectors"]
        itc, itm = [], []
        for batch, _ in inputs.batches(len(images), self.batch_size):
            rows = self._encode_images(images[batch])
            queries: Any = self._run_batches(embeddings.image_features, rows)
            itc.append(
                np.asarray(max_query_similarity(queries["image_embeds_proj"], vectors))
            )
            itm.append(np.stack([self._match_texts(row, ids, mask) for row in rows]))
        return Match(np.concatenate(itc), np.concatenate(itm))

    def _match_texts(
        self,
        features: Float[Array, "P D"],
        ids: Int[Array, "texts T"],
        mask: Bool[Array, "texts T"],
    ) -> Float[Array, " texts"]:
        """Score one image with all texts by the matching head."""
        rows = np.broadcast_to(features, (len(ids), *features.shape))
        return self._run_batches(embeddings.matching_scores, rows, ids, mask)["itm"]

    def features(
        self,
        images: Any = None,
        texts: str | Sequence[str] = (),
        *,
        mode: str = "multimodal",
        features: Any = None,
    ) -> dict[str, Array]:
        """Compute embeddings of images, texts, or image-text pairs.

        Args:
          images: images; ignored in mode "text".
          texts: texts; ignored in mode "image".
          mode: "image", "text" or "multimodal".
          features: as in `caption`.

        Returns:
          Mode "image": `image_embeds` [B,Q,D] and unit vectors `image_embeds_proj`
          [B,Q,C]. Mode "text": `text_embeds` [B,T,D], unit vectors `text_embeds_proj`
          [B,T,C] ([CLS] is first) and `text_mask` [B,T]. Mode "multimodal":
          `multimodal_embeds` [B,Q,D].
        """
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: there are {', '.join(MODES)}")
        if mode == "image":
            return super().features(images, features=features)
        ids, mask = self._text_arrays(inputs.as_texts(texts, "texts"))
        if mode == "text":
            longest = int(mask.sum(axis=1).max())
            output = self._run_batches(embeddings.text_features, ids, mask)
            output["text_mask"] = mask
            return {name: array[:, :longest] for name, array in output.items()}
        rows = self._image_arrays(images, features)
        rows, ids, mask = inputs.align(images=rows, texts=ids, masks=mask)
        return self._run_batches(embeddings.multimodal_features, rows, ids, mask)

    @property
    def _family(self) -> str:
        return "qformer"

    def text_length(self, texts: str | Sequence[str]) -> int:
        """Return the padded length of texts; equal lengths share compiled programs.

        Raises:
          ValueError: a text is too long.
        """
        return self._text_arrays(inputs.as_texts(texts, "texts"))[0].shape[1]

    def _text_arrays(
        self, texts: Sequence[str], truncate: bool = False
    ) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
        """Tokenize to [CLS] text [SEP].

        Raises:
          ValueError: a text is too long, unless long texts are truncated.
        """
        tokenizer = self.qformer_tokenizer
        limit = self.model.config.qformer.max_positions
        longest = max(len(tokenizer.encode_words(text)) + 2 for text in texts)
        if longest > limit and not truncate:
            raise ValueError(f"a text has {longest} tokens, the Q-Former reads {limit}")
        return tokenizer.encode(texts, min(inputs.padded_length(longest), limit))

    def _prompt_arrays(
        self, prompts: Sequence[Prompt], questions: Questions | None = None
    ) -> PromptArrays:
        """Tokenize to [DEC] prompt; all prompts must have equal length.

        Raises:
          ValueError: prompts have unequal numbers of tokens, or the model has no
            language-modelling head.
        """
        del questions  # only stage-2 models have methods that ask questions
        if self._absent:
            raise ValueError(
                "this stage-1 model came without the head that generates captions "
                "(Hugging Face does not store it): it can only match and give features"
            )
        tokenizer = self.qformer_tokenizer
        # Training puts [DEC] in the last row, also if the tokenizer has fewer tokens.
        start_id = self.model.config.qformer.vocab_size - 1
        ids = [[start_id, *tokenizer.encode_words(str(p))] for p in prompts]
        if len({len(row) for row in ids}) > 1:
            raise ValueError(
                "a stage-1 model takes prompts of equal length only: give one for all"
            )
        return (np.array(ids, np.int32),)

    def _text_ids(
        self, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> list[list[int]]:
        """Tokenize to text [SEP]."""
        del prompts  # words are tokenized the same behind them
        tokenizer = self.qformer_tokenizer
        return [[*tokenizer.encode_words(text), tokenizer.end_id] for text in texts]

    def _target_arrays(
        self, prompt_arrays: PromptArrays, prompt: Prompt, text: str
    ) -> TargetArrays:
        """Build [DEC] prompt text [SEP]; see `BatchedModel`."""
        ((start,),) = prompt_arrays
        (words,) = self._text_ids([prompt], [text])
        row = [*start, *words]
        length = inputs.padded_length(len(row))
        length = min(length, self.model.config.qformer.max_positions)
        ids, mask = pad_rows([row], length, self.qformer_tokenizer.pad_id)
        return TargetArrays({"text_ids": ids, "text_mask": mask}, len(start) - 1)

    def _check_lengths(
        self, prompt_arrays: PromptArrays, images_per_row: int, new_tokens: int
    ) -> None:
        """Check that prompt and new tokens fit the Q-Former's positions."""
        del images_per_row  # always one; queries have no positions
        (start_ids,) = prompt_arrays
        limit = self.model.config.qformer.max_positions
        if start_ids.shape[1] + new_tokens > limit:
            raise ValueError(
                f"{start_ids.shape[1]} prompt tokens and {new_tokens} new ones "
                f"(max_new_tokens) exceed this Q-Former's {limit} positions"
            )

    def _prefill(
        self, images: Shaped[Array, "B ..."], prompt_arrays: PromptArrays
    ) -> Prefilled:
        """Read images and the starts of their captions with the Q-Former."""
        images, (start_ids,) = sharding.place_rows_like(
            self.params, (images, prompt_arrays)
        )
        return qformer_programs.prefill_qformer(
            self.model, self.params, images, start_ids
        )

    def _decode(
        self,
        prefilled: Prefilled,
        prompt_arrays: PromptArrays,
        config: DecodingConfig,
        keys: Key[jax.Array, " B"] | None,
    ) -> Decoded:
        """Generate tokens with the Q-Former."""
        (start_ids,) = prompt_arrays
        return decode_tokens(
            self.model,
            "qformer",
            self.params,
            *prefilled,
            config,
            eos_id=self.qformer_tokenizer.end_id,
            pad_id=self.qformer_tokenizer.pad_id,
            prompt_tokens=start_ids.shape[1],
            history=sharding.place_rows_like(self.params, start_ids),
            keys=keys,
        )

    def _detokenize(self, ids: Shaped[Array, " N"]) -> str:
        return self.qformer_tokenizer.decode(ids)

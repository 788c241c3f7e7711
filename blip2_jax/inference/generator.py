"""`Blip2Generator`, a stage-2 model: captions, answers and instructed generation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key, PyTree, Shaped
from numpy import ndarray as Array

from blip2_jax.convert.vocabulary import check_vocabulary
from blip2_jax.data.text.prompts import (
    QUESTION_PROMPT,
    SHORT_ANSWER_PROMPT,
    generation_prompts,
    question_rows,
)
from blip2_jax.data.text.tokenizers import LanguageTokenizer, QFormerTokenizer
from blip2_jax.generation.decode import decode_plan, select_results
from blip2_jax.generation.decoder import Decoded, bound_decoder
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.generation.decoding_plan import (
    DecodingPlan,
    DecodingValues,
    split_config,
)
from blip2_jax.inference import dialogue, inputs, programs
from blip2_jax.inference.model import Blip2, PromptArrays, Questions
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.sizes import FeaturesConfig, LanguageModelConfig
from blip2_jax.nn.kv_cache import PrefixKV
from blip2_jax.parallel import hosts, sharding

# A CPU keeps a second, faster copy of language models up to this size.
MAX_UNSTACKED_BYTES = 2**30


class Blip2Generator(Blip2):
    """A stage-2 model: captions, answers, conversations and instructed generation."""

    model: Blip2Stage2
    _accepts_several_images = True

    def __init__(
        self,
        model: Blip2Stage2,
        params: PyTree,
        *,
        language_tokenizer: LanguageTokenizer | None = None,
        qformer_tokenizer: QFormerTokenizer | None = None,
        prompt: str = "",
        question_prompt: str = "",
        batch_size: int = 32,
    ):
        """Build a model from its parts; `blip2_jax.load` does so from files.

        Args:
          model: Flax module.
          params: its parameters; see `Blip2`.
          language_tokenizer: tokenizer of the language model.
          qformer_tokenizer: tokenizer of questions, if the Q-Former reads them.
          prompt: default start of captions.
          question_prompt: default template of questions; "" selects the paper's.
          batch_size: see `Blip2`.
        """
        super().__init__(model, params, qformer_tokenizer, prompt, batch_size)
        self._language_tokenizer = language_tokenizer
        self._question_prompt = question_prompt

    def answer(
        self,
        images: Any = None,
        questions: str | Sequence[str] = (),
        *,
        history: Sequence[Any] = (),
        examples: Sequence[tuple[Any, str, str]] = (),
        question_prompt: str = "",
        image_of: Sequence[int] | None = None,
        features: Any = None,
        seed: int = 0,
        sample_ids: Sequence[int] | None = None,
        decoding: str = "",
        **settings: Any,
    ) -> list[Any]:
        """Answer questions about images.

        Args:
          images: one for all questions, or one per question; see `caption`.
          questions: one for all images, or one per image.
          history: earlier turns of the conversation as (question, answer) pairs, for
            all rows or one list per row. They precede the question.
          examples: in-context examples as (image or features, question, answer). Their
            images precede the row's own, their turns precede its history.
          question_prompt: template of questions with `{}` in place of the question, if
            not the model's own.
          image_of: index into `images` for each question; each image is encoded once.
          features: as in `caption`.
          seed: as in `caption`.
          sample_ids: as in `caption`.
          decoding: as in `caption`.
          **settings: as in `caption`.

        Returns:
          As `caption`.
        """
        example_images, example_turns = dialogue.split_examples(examples)
        prompts, qformer_questions = dialogue.question_prompts(
            questions,
            history,
            example_turns,
            question_prompt or self._question_template(),
        )
        config = self._decoding_config(decoding, "answer", settings)
        rows = self._image_arrays(images, features, several=True)
        if example_images:
            is_features = isinstance(self.model.config.vision, FeaturesConfig)
            rows = dialogue.prepend_images(
                self._image_arrays(None, example_images)
                if is_features
                else self._image_arrays(example_images, None),
                rows,
            )
        return self._generate_texts(
            rows, prompts, config, seed, qformer_questions, image_of, sample_ids
        )

    def converse(
        self, images: Any = None, questions: Sequence[str] = (), **options: Any
    ) -> list[str]:
        """Ask questions about one image (or several, `[[a, b]]`) in one conversation.

        Each prompt contains all earlier questions and their answers.

        Args:
          images: as in `answer`.
          questions: questions in order.
          **options: other arguments of `answer`.

        Raises:
          ValueError: there are several rows of images.
        """
        turns: list[dialogue.Turn] = []
        for question in inputs.as_texts(questions, "questions"):
            answers = self.answer(images, question, history=turns, **options)
            if len(answers) != 1:
                raise ValueError(
                    f"a conversation is about one image, or several in one row "
                    f"([[a, b]]), not {len(answers)} rows"
                )
            turns.append((question, answers[0]))
        return [answer for _, answer in turns]

    def generate(
        self,
        images: Any = None,
        prompts: str | Sequence[str] = "",
        *,
        features: Any = None,
        seed: int = 0,
        decoding: str = "",
        **settings: Any,
    ) -> list[Any]:
        """Continue prompts (instructions, dialogues) about images.

        Args:
          images: as in `caption`.
          prompts: one for all rows, or one per row.
          features: as in `caption`.
          seed: as in `caption`.
          decoding: as in `caption`.
          **settings: as in `caption`.

        Returns:
          As `caption`.
        """
        config = self._decoding_config(decoding, "generate", settings)
        rows = self._image_arrays(images, features, several=True)
        return self._generate_texts(rows, prompts, config, seed)

    @functools.cached_property
    def language_tokenizer(self) -> LanguageTokenizer:
        """Tokenizer of the language model.

        Raises:
          ValueError: the model was built without one, or with one for another model.
        """
        tokenizer, config = self._language_tokenizer, self._language_model_config
        if tokenizer is None:
            raise ValueError("this model was built without a language_tokenizer")
        family = "encoder_decoder" if config.is_encoder_decoder else "decoder_only"
        if tokenizer.family != family:
            raise ValueError(
                f"this model needs a tokenizer of the family {family!r}, not "
                f"{tokenizer.family!r}"
            )
        check_vocabulary(tokenizer, self.model.config)
        return tokenizer

    @property
    def _language_model_config(self) -> LanguageModelConfig:
        config = self.model.config.language_model
        assert config is not None  # checked by Blip2Stage2
        return config

    @property
    def _family(self) -> str:
        # The original has one model of each kind; others get the defaults of theirs.
        return "t5" if self._language_model_config.is_encoder_decoder else "opt"

    def _question_template(self) -> str:
        """Return the training template, or the paper's for this language model."""
        if self._question_prompt:
            return self._question_prompt
        return QUESTION_PROMPT if self._family == "opt" else SHORT_ANSWER_PROMPT

    def _prompt_arrays(
        self, prompts: Sequence[str], questions: Questions | None = None
    ) -> PromptArrays:
        """Tokenize prompts, and questions if the Q-Former reads them.

        Without questions, the Q-Former processes only its queries.

        Returns:
          Prompt ids and mask [B,T]; with questions also their ids and mask, [B,T], or
          [B,images,T] for several images per row.
        """
        _, mask = generation_prompts(self.language_tokenizer, prompts)
        length = inputs.padded_length(mask.shape[1])
        prompt_arrays = generation_prompts(self.language_tokenizer, prompts, length)
        if not self.model.question_in_qformer:
            return prompt_arrays
        tokenizer = self.qformer_tokenizer
        per_row = questions or [[""]] * len(prompts)
        texts = [question for row in per_row for question in row]
        longest = max(len(tokenizer.encode_words(text)) + 2 for text in texts)
        limit = self.model.config.qformer.max_positions
        if longest > limit:
            raise ValueError(
                f"a question has {longest} tokens, the Q-Former reads {limit}"
            )
        length = min(inputs.padded_length(longest), limit)
        question_arrays = [
            array.reshape(len(prompts), -1, length)
            for array in question_rows(tokenizer, texts, length)
        ]
        if question_arrays[0].shape[1] == 1:
            question_arrays = [array[:, 0] for array in question_arrays]
        return (*prompt_arrays, *question_arrays)

    def _check_lengths(
        self, prompt_arrays: PromptArrays, images_per_row: int, config: DecodingConfig
    ) -> None:
        """Check that queries, prompt and new tokens fit the model's positions.

        Padding has no position.
        """
        language_model = self._language_model_config
        if (limit := language_model.position_limit) is None:
            return
        queries = images_per_row * self.model.config.qformer.num_queries
        longest = int(prompt_arrays[1].sum(axis=1).max())
        total = queries + longest + config.max_new_tokens
        if total > limit:
            raise ValueError(
                f"{queries} queries, {longest} prompt tokens and max_new_tokens="
                f"{config.max_new_tokens} take {total} positions; this "
                f"{language_model.title} has {limit}"
            )

    def _decode_batch(
        self,
        images: Shaped[Array, "B ..."],
        prompt_arrays: PromptArrays,
        config: DecodingConfig,
        keys: Key[jax.Array, " B"] | None = None,
    ) -> Decoded:
        """Generate tokens with the language model."""
        ids, mask = prompt_arrays[:2]
        history = repetition_history(
            self._language_model_config, ids, mask, config.convention
        )
        images, (ids, mask, *question), history = sharding.place_rows_like(
            self.params, (images, prompt_arrays, history)
        )
        weights = self._unstacked_weights
        logits, prefix = prefill_language_model(
            self.model, self.params, images, ids, mask, tuple(question), weights
        )
        return decode_with_language_model(
            self.model,
            self.params,
            logits,
            prefix,
            config,
            eos_id=self.language_tokenizer.end_id,
            history=history,
            keys=keys,
            weights=weights,
        )

    def _detokenize(self, ids: Shaped[Array, " N"]) -> str:
        return self.language_tokenizer.decode(ids)

    @functools.cached_property
    def _unstacked_weights(self) -> PyTree:
        """Copy of the language model's weights for fast CPU decoding, or None."""
        if not should_unstack_weights(self.params):
            return None
        return unstack_weights(self.model, self.params)


# Prefill and decoding are compiled separately, so that other decoding settings do not
# recompile the prefill, which contains the image encoder.
@programs.compile_function(static=("model",))
def prefill_language_model(
    model: Blip2Stage2,
    params: PyTree,
    images: Shaped[jax.Array, "B ..."],
    prompt_ids: Int[jax.Array, "B T"],
    prompt_mask: Bool[jax.Array, "B T"],
    question: tuple[Int[jax.Array, "B ..."], Bool[jax.Array, "B ..."]] | tuple[()] = (),
    weights: PyTree = None,
) -> tuple[Float[jax.Array, "B V"], PrefixKV]:
    """Run a stage-2 model up to the logits of the first new token.

    Args:
      model: Flax module.
      params: its parameters.
      images: uint8 or normalised images, or features from `encode_image`. With one
        more axis, [B, images, ...], the queries of a row's images are concatenated.
      prompt_ids: for a decoder-only model [BOS] prompt, padded on the left; for an
        encoder-decoder prompt [EOS], padded on the right.
      prompt_mask: True = a real token.
      question: ids and mask of the questions that the Q-Former reads: [B, T] for one
        per row, or [B, images, T] for one per image.
      weights: from `unstack_weights`; None reads those in `params`.
    """
    bound = model.bind({"params": params})
    image_rank = 3 if isinstance(model.config.vision, FeaturesConfig) else 4
    batch, has_several = images.shape[0], images.ndim > image_rank
    count = images.shape[1] if has_several else 1
    if has_several:
        images = images.reshape(-1, *images.shape[2:])
    # [B, images, T] -> [B * images, T]; or repeat the question of each row.
    question_arrays = [
        array.reshape(-1, array.shape[-1])
        if array.ndim == 3
        else jnp.repeat(array, count, axis=0)
        for array in question
    ]
    queries = bound.encode_queries(bound.encode_image(images), *question_arrays)
    if has_several:
        queries = queries.reshape(batch, -1, queries.shape[-1])
    logits, prefix = bound.prefill(queries, prompt_ids, prompt_mask, weights)
    # The weights are an argument of the decoding program and need no copy in the cache.
    return logits, dataclasses.replace(prefix, weights=None)


def decode_with_language_model(
    model: Blip2Stage2,
    params: PyTree,
    logits: Float[jax.Array, "B V"],
    prefix: PrefixKV,
    config: DecodingConfig,
    *,
    eos_id: int,
    history: Int[jax.Array, "B T"] | None = None,
    keys: Key[jax.Array, " B"] | None = None,
    weights: PyTree = None,
) -> Decoded:
    """Generate tokens after `prefill_language_model`.

    Args:
      model: Flax module.
      params: its parameters.
      logits: from `prefill_language_model`.
      prefix: from `prefill_language_model`.
      config: settings; few of them select another program (`DecodingPlan`).
      eos_id: token that ends a text: a newline for OPT, </s> for T5.
      history: from `repetition_history`.
      keys: one random key per row, for sampling.
      weights: the argument of `prefill_language_model`.
    """
    plan, values = split_config(config, inputs.padded_length(config.max_new_tokens))
    decoded = _decode_plan(
        model, params, logits, prefix, plan, values, eos_id, history, keys, weights
    )
    return select_results(hosts.to_host(decoded), config)


@programs.compile_function(static=("model", "plan", "eos_id"))
def _decode_plan(
    model: Blip2Stage2,
    params: PyTree,
    logits: Float[jax.Array, "B V"],
    prefix: PrefixKV,
    plan: DecodingPlan,
    values: DecodingValues,
    eos_id: int,
    history: Int[jax.Array, "B T"] | None,
    keys: Key[jax.Array, " B"] | None,
    weights: PyTree,
) -> Decoded:
    """Generate tokens; see `decode_with_language_model`."""
    assert model.config.language_model is not None  # checked by Blip2Stage2
    bind = lambda: model.bind({"params": params}).language_model
    # The position tables are long enough for `values.max_new_tokens`, which the caller
    # has checked, and may be too short for all slots.
    pad_id = model.config.language_model.pad_id
    decoder = bound_decoder(bind, eos_id, pad_id)
    prefix = dataclasses.replace(prefix, weights=weights)
    return decode_plan(
        decoder, logits, prefix, plan, values, history=history, keys=keys
    )


@programs.compile_function(static=("model",))
def unstack_weights(model: Blip2Stage2, params: PyTree) -> PyTree:
    """Copy the language model's weights to the layout that a CPU reads fastest."""
    return model.bind({"params": params}).language_model.unstacked_weights()


def should_unstack_weights(params: PyTree) -> bool:
    """Return True on a CPU if the language model is small enough to be copied."""
    weights = jax.tree.leaves(params["language_model"])
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in weights)
    return jax.default_backend() == "cpu" and size <= MAX_UNSTACKED_BYTES


def repetition_history(
    language_model: LanguageModelConfig,
    prompt_ids: Int[Array, "B T"],
    prompt_mask: Bool[Array, "B T"],
    convention: str,
) -> Int[Array, "B T"]:
    """Return the tokens that the repetition penalty counts from the start; -1 for none.

    For an encoder-decoder this is the decoder's start token. For a decoder-only model
    it is the prompt with BOS under `transformers5`, and BOS alone under `original`:
    LAVIS passes embeddings only, and transformers 4.33 puts BOS in their place.
    """
    if not language_model.is_encoder_decoder and convention == "transformers5":
        return np.where(prompt_mask, prompt_ids, np.int32(-1))
    start_id = -1 if language_model.start_id is None else language_model.start_id
    return np.full((prompt_ids.shape[0], 1), start_id, np.int32)

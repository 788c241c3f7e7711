"""`Blip2Generator`, a stage-2 model: captions, answers and instructed generation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Key, PyTree, Shaped
from numpy import ndarray as Array

from blip2_jax.convert.vocabulary import check_vocabulary
from blip2_jax.data.text.chat import Prompt
from blip2_jax.data.text.prompts import (
    SHORT_ANSWER_PROMPT,
    default_question_prompt,
    encoder_decoder_example,
    generation_prompts,
    question_rows,
    target_ids,
)
from blip2_jax.data.text.tokenizers import LanguageTokenizer, QFormerTokenizer
from blip2_jax.generation.decoder import Decoded
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.inference import dialogue, inputs, language_programs
from blip2_jax.inference.batched_model import Prefilled, PromptArrays, Questions
from blip2_jax.inference.decoding_program import decode_tokens
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.word_attention import TargetArrays, decoder_only_target
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.sizes import FeaturesConfig, LanguageModelConfig
from blip2_jax.parallel import sharding


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
        prompt_in_qformer: bool = False,
        batch_size: int = 32,
    ):
        """Build a model from its parts; `blip2_jax.load` does so from files.

        Args:
          model: Flax module.
          params: its parameters; see `Blip2`.
          language_tokenizer: tokenizer of the language model. If it has a chat
            template, all prompts are turns of a user in it.
          qformer_tokenizer: tokenizer of questions, if the Q-Former reads them.
          prompt: default start of captions.
          question_prompt: default template of questions; "" selects the paper's, with
            a chat template the question alone.
          prompt_in_qformer: a Q-Former that reads text reads the whole prompt, as in
            InstructBLIP, not the question alone.
          batch_size: see `Blip2`.
        """
        super().__init__(model, params, qformer_tokenizer, prompt, batch_size)
        self._language_tokenizer = language_tokenizer
        self._question_prompt = question_prompt
        self._prompt_in_qformer = prompt_in_qformer

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
        return_scores: bool = False,
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
          return_scores: as in `caption`.
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
            rows,
            prompts,
            config,
            seed,
            qformer_questions,
            image_of,
            sample_ids,
            return_scores,
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
          ValueError: there are several rows of images, or `return_scores` is set.
        """
        if options.get("return_scores"):
            raise ValueError("converse returns texts: ask with answer(return_scores=)")
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
        return_scores: bool = False,
        **settings: Any,
    ) -> list[Any]:
        """Continue prompts (instructions, dialogues) about images.

        Args:
          images: as in `caption`.
          prompts: one for all rows, or one per row.
          features: as in `caption`.
          seed: as in `caption`.
          decoding: as in `caption`.
          return_scores: as in `caption`.
          **settings: as in `caption`.

        Returns:
          As `caption`.
        """
        config = self._decoding_config(decoding, "generate", settings)
        texts = inputs.as_texts(prompts, "prompts")
        rows = self._image_arrays(images, features, several=True)
        return self._generate_texts(
            rows, texts, config, seed, return_scores=return_scores
        )

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

    def _prompts_of(
        self,
        prompts: str | Sequence[str] | None,
        questions: str | Sequence[str] | None,
        question_prompt: str,
        history: Sequence[dialogue.Turn] = (),
    ) -> tuple[Sequence[Prompt], Questions | None]:
        """Return prompts, or those of questions with what the Q-Former reads."""
        if questions is None:
            return super()._prompts_of(prompts, questions, question_prompt)
        if prompts is not None:
            raise ValueError("give prompts or questions, not both")
        template = question_prompt or self._question_template()
        return dialogue.question_prompts(questions, history, (), template)

    @property
    def _family(self) -> str:
        # The original has one model of each kind; others get the defaults of theirs.
        is_t5 = self._language_model_config.is_encoder_decoder
        if self._prompt_in_qformer:
            return "instructblip" if is_t5 else "instructblip_vicuna"
        return "t5" if is_t5 else "opt"

    def _question_template(self) -> str:
        """Return the training template, or that of this kind of language model."""
        if self._question_prompt:
            return self._question_prompt
        if self._prompt_in_qformer:  # InstructBLIP's, whatever the language model
            return SHORT_ANSWER_PROMPT
        return default_question_prompt(self.language_tokenizer)

    def _prompt_arrays(
        self, prompts: Sequence[Prompt], questions: Questions | None = None
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
        if self._prompt_in_qformer:  # an empty prompt too: [CLS] [SEP]
            texts = list(map(str, prompts))
            length = self._qformer_length(texts)
            return (*prompt_arrays, *self.qformer_tokenizer.encode(texts, length))
        per_row = questions or [[""]] * len(prompts)
        texts = [question for row in per_row for question in row]
        length = self._qformer_length(texts)
        question_arrays = [
            array.reshape(len(prompts), -1, length)
            for array in question_rows(self.qformer_tokenizer, texts, length)
        ]
        if question_arrays[0].shape[1] == 1:
            question_arrays = [array[:, 0] for array in question_arrays]
        return (*prompt_arrays, *question_arrays)

    def _qformer_length(self, texts: Sequence[str]) -> int:
        """Return the padded length of texts that the Q-Former reads.

        Raises:
          ValueError: a text is too long.
        """
        encode = self.qformer_tokenizer.encode_words
        longest = max(len(encode(text)) + 2 for text in texts)
        limit = self.model.config.qformer.max_positions
        if longest > limit:
            raise ValueError(
                f"a question has {longest} tokens, the Q-Former reads {limit}"
            )
        return min(inputs.padded_length(longest), limit)

    def _text_ids(
        self, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> list[list[int]]:
        """Tokenize the text that follows each prompt, and its end token."""
        tokenizer = self.language_tokenizer
        return [
            target_ids(tokenizer, prompt, text)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _target_arrays(
        self, prompt_arrays: PromptArrays, prompt: Prompt, text: str
    ) -> TargetArrays:
        """Build the example of training; see `BatchedModel`."""
        tokenizer, question = self.language_tokenizer, prompt_arrays[2:]
        new = self._text_ids([prompt], [text])[0]
        if tokenizer.family == "decoder_only":
            ids, mask = prompt_arrays[:2]
            target = decoder_only_target(ids, mask, new, tokenizer.pad_id)
        else:
            row = encoder_decoder_example(
                tokenizer,
                str(prompt),
                text,
                input_length=prompt_arrays[0].shape[1],
                target_length=inputs.padded_length(len(new)),
            )
            fields = dataclasses.fields(row)
            arrays = {field.name: getattr(row, field.name)[None] for field in fields}
            target = TargetArrays(arrays, 0)
        names = ("question_ids", "question_mask")
        questions = dict(zip(names, question, strict=False))
        return TargetArrays({**target.arrays, **questions}, target.first)

    def _check_lengths(
        self, prompt_arrays: PromptArrays, images_per_row: int, new_tokens: int
    ) -> None:
        """Check that queries, prompt and new tokens fit the model's positions.

        Padding has no position.
        """
        language_model = self._language_model_config
        if (limit := language_model.position_limit) is None:
            return
        queries = images_per_row * self.model.config.num_visual_tokens
        longest = int(prompt_arrays[1].sum(axis=1).max())
        total = queries + longest + new_tokens
        if total > limit:
            raise ValueError(
                f"{queries} queries, {longest} prompt tokens and {new_tokens} new ones "
                f"(max_new_tokens) take {total} positions; this "
                f"{language_model.title} has {limit}"
            )

    def _prefill(
        self, images: Shaped[Array, "B ..."], prompt_arrays: PromptArrays
    ) -> Prefilled:
        """Read images and prompts with Q-Former and language model."""
        images, (ids, mask, *question) = sharding.place_rows_like(
            self.params, (images, prompt_arrays)
        )
        return language_programs.prefill_language_model(
            self.model,
            self.params,
            images,
            ids,
            mask,
            tuple(question),
            self._unstacked_weights,
        )

    def _decode(
        self,
        prefilled: Prefilled,
        prompt_arrays: PromptArrays,
        config: DecodingConfig,
        keys: Key[jax.Array, " B"] | None,
    ) -> Decoded:
        """Generate tokens with the language model."""
        ids, mask = prompt_arrays[:2]
        history = language_programs.repetition_history(
            self._language_model_config, ids, mask, config.convention
        )
        return decode_tokens(
            self.model,
            "language_model",
            self.params,
            *prefilled,
            config,
            eos_id=self.language_tokenizer.end_id,
            pad_id=self._language_model_config.pad_id,
            history=sharding.place_rows_like(self.params, history),
            keys=keys,
            weights=self._unstacked_weights,
        )

    def _detokenize(self, ids: Shaped[Array, " N"]) -> str:
        return self.language_tokenizer.decode(ids)

    @functools.cached_property
    def _unstacked_weights(self) -> PyTree:
        """Copy of the language model's weights for fast CPU decoding, or None."""
        if not language_programs.should_unstack_weights(self.params):
            return None
        return language_programs.unstack_weights(self.model, self.params)

"""A trained model to use: caption, answer, generate, match, features.

    model = blip2_jax.load("runs/stage2")
    model.caption(["a.jpg", "b.jpg"], num_beams=5)

Images are paths, PIL images or arrays [height, width, 3] of bytes, one or a list (or
an array) of them; results come as lists or arrays with a row for each. Inputs are
padded to a few sizes, so that few programs are compiled; a row's result does not
depend on the other rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree, Shaped
from numpy import ndarray as Array

from blip2_jax.data.text import prompts as prompting
from blip2_jax.data.text.tokenizers import LanguageTokenizer, QFormerTokenizer
from blip2_jax.generation.decoding_config import ANSWER, DecodingConfig, authors, change
from blip2_jax.inference import dialogue, inputs
from blip2_jax.inference import embeddings as passes
from blip2_jax.inference.text_generators import (
    LanguageModelGenerator,
    QFormerGenerator,
    TextGenerator,
    write_texts,
)
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import FeaturesConfig, OPTConfig, T5Config
from blip2_jax.parallel import hosts, sharding

TEXT_STEP = 8  # texts are padded to multiples of so many tokens
CAPTION = DecodingConfig(num_beams=5)
MODES = ("image", "text", "multimodal")

_PASSES = {
    function.__name__: jax.jit(function, static_argnums=0)
    for function in (
        passes.image_features,
        passes.text_features,
        passes.multimodal_features,
        passes.match_scores,
        passes.attention_maps,
    )
}


class Match(NamedTuple):
    """How well images and texts fit, row by row.

    Attributes:
      itc: cosine of the text and the query nearest to it (contrastive head).
      itm: probability of a match (matching head, which reads both together).
    """

    itc: Float[Array, " B"]
    itm: Float[Array, " B"]


class Blip2:
    """A model with its parameters and tokenizers.

    Attributes:
      batch_size: rows of the largest compiled program; more rows go through in turn.
    """

    def __init__(
        self,
        model: Blip2Stage1 | Blip2Stage2,
        params: PyTree,
        *,
        qformer_tokenizer: QFormerTokenizer | None = None,
        language_tokenizer: LanguageTokenizer | None = None,
        prompt: str = "",
        question_prompt: str = "",
        batch_size: int = 32,
        absent: Sequence[str] = (),
    ):
        """Put a model together; `load` does so from a run.

        Args:
          model: of either stage.
          params: its parameters; over a mesh, rows are divided over it too.
          qformer_tokenizer: of texts that the Q-Former reads or writes (stage 1).
          language_tokenizer: of the language model (stage 2).
          prompt: put before captions unless `caption` is told another.
          question_prompt: template of questions; "" takes the paper's.
          batch_size: see the class.
          absent: patterns of parameter paths without values (`Opened.absent`).
        """
        self._absent = tuple(absent)
        self.model, self.params, self.batch_size = model, params, batch_size
        self.prompt, self._question_prompt = prompt, question_prompt
        self._qformer_tokenizer = qformer_tokenizer
        self._language_tokenizer = language_tokenizer

    def caption(
        self,
        images: Any = None,
        prompt: str | Sequence[str] | None = None,
        *,
        features: Any = None,
        seed: int = 0,
        decoding: str = "",
        **settings: Any,
    ) -> list[Any]:
        """Describe images.

        Args:
          images: see the module's head. Of stage 2, a row may be several images, one
            after the other before the prompt: lists of lists, all of one length, or an
            array [B, N, height, width, 3].
          prompt: how captions begin, one for all or one an image; None takes the
            model's own.
          features: in place of images, [P, D] or [B, P, D], for a model that was
            trained on features.
          seed: of `sample=True`.
          decoding: "" begins with this package's settings (five beams); "original"
            with those of the authors' code; "original_coco", "original_nocaps" with
            those of its evaluations (`generation.authors`).
          **settings: fields of `DecodingConfig` that differ.

        Returns:
          A string an image; a list of strings with `num_return_sequences` > 1.

        Raises:
          ValueError: wrong inputs or settings; the message says what was expected.
        """
        prompts = self.prompt if prompt is None else prompt
        config = change(self._decoding(decoding, "generate"), settings)
        return self._generate(images, features, prompts, config, seed)

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
        decoding: str = "",
        **settings: Any,
    ) -> list[Any]:
        """Answer questions about images, asked as in training; see `caption`.

        One image may have many questions, or one question many images.

        Args:
          images: see `caption`.
          questions: one for all, or one a row.
          history: earlier turns, pairs (question, answer), that stand before the
            question: for all rows, or a list of them a row.
          examples: (image or features, question, answer) of other images, for all
            rows: their images stand before the row's own, their questions and answers
            before its question.
          question_prompt: another template than in training, with `{}` in the place of
            the question.
          image_of: which of the images each question is about, by place; each image is
            encoded once. None: one each, or one for all.
          features, seed, decoding, **settings: see `caption`.
        """
        self._need_stage(2, "answer")
        template = question_prompt or self._template()
        shown = [(question, answer) for _, question, answer in examples]
        asked = dialogue.ask(questions, history, shown, template)
        config = change(self._decoding(decoding, "answer"), settings)
        return self._generate(
            images,
            features,
            asked.prompts,
            config,
            seed,
            asked.questions,
            [image for image, *_ in examples],
            image_of,
        )

    def converse(
        self, images: Any = None, questions: Sequence[str] = (), **options: Any
    ) -> list[str]:
        """Ask about one image (or several, `[[a, b]]`) one question after the other.

        Each is asked with all earlier ones and their answers before it.

        Args:
          images, questions, **options: of `answer`.
        """
        turns: list[tuple[str, str]] = []
        for question in inputs.as_texts(questions, "questions"):
            (answer,) = self.answer(images, question, history=turns, **options)
            turns.append((question, answer))
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
        """Continue prompts (instructions, dialogues) about images; see `caption`."""
        self._need_stage(2, "generate")
        config = change(self._decoding(decoding, "generate"), settings)
        return self._generate(images, features, prompts, config, seed)

    def match(
        self,
        images: Any = None,
        texts: str | Sequence[str] = (),
        *,
        features: Any = None,
    ) -> Match:
        """Score image-text pairs, row by row; a single image or text stands for all."""
        self._need_stage(1, "match")
        pixels = self._images(images, features)
        texts = inputs.as_texts(texts, "texts")
        pixels, texts = inputs.align(images=pixels, texts=texts)
        scores = self._batched("match_scores", pixels, *self._tokens(texts))
        return Match(scores["itc"], scores["itm"])

    def features(
        self,
        images: Any = None,
        texts: str | Sequence[str] = (),
        *,
        mode: str = "multimodal",
        features: Any = None,
    ) -> dict[str, Array]:
        """Embeddings of images, texts, or images and texts together.

        Args:
          images: see the module's head; not read in mode "text".
          texts: not read in mode "image".
          mode: "image": `image_embeds` [B,Q,D] and `image_embeds_proj` (stage 1:
            [B,Q,C], unit vectors; stage 2: what the language model reads);
            "text": `text_embeds` [B,T,D], `text_embeds_proj` [B,T,C] ([CLS] first)
            and `text_mask` [B,T]; "multimodal": `multimodal_embeds` [B,Q,D].
          features: as in `caption`.
        """
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: there are {', '.join(MODES)}")
        if mode == "image":
            return self._batched("image_features", self._images(images, features))
        self._need_stage(1, f"features with mode={mode!r}")
        texts = inputs.as_texts(texts, "texts")
        ids, mask = self._tokens(texts)
        if mode == "text":
            longest = int(mask.sum(axis=1).max())
            found = self._batched("text_features", ids, mask) | {"text_mask": mask}
            return {name: values[:, :longest] for name, values in found.items()}
        pixels = self._images(images, features)
        pixels, ids, mask = inputs.align(images=pixels, texts=ids, masks=mask)
        return self._batched("multimodal_features", pixels, ids, mask)

    def attention_maps(
        self, images: Any = None, *, features: Any = None
    ) -> Float[Array, "B Q P"]:
        """Where each query looks in an image: its cross-attention, sums of one.

        Blocks and heads are averaged (the last block alone says little: captions read
        the queries before it). Of an image encoder's tokens the class token comes
        first, then the patches row by row.

        Args:
          images, features: see `caption`.
        """
        pixels = self._images(images, features)
        return self._batched("attention_maps", pixels)["attention"]

    def _generate(
        self,
        images: Any,
        features: Any,
        prompts: str | Sequence[str],
        config: DecodingConfig,
        seed: int,
        questions: list[list[str]] | None = None,
        examples: Sequence[Any] = (),
        image_of: Sequence[int] | None = None,
    ) -> list[Any]:
        """Texts for images and prompts, with other images before each row's own."""
        writer = self._writer
        pixels = self._images(images, features, isinstance(self.model, Blip2Stage2))
        if examples:
            is_features = isinstance(self.model.config.vision, FeaturesConfig)
            first = (None, examples) if is_features else (examples, None)
            pixels = dialogue.behind(self._images(*first), pixels)
        given: dict[str, Any] = {
            "images": inputs.places(image_of, len(pixels)),
            "prompts": inputs.as_texts(prompts, "prompts"),
        }
        if questions is not None:
            given["questions"] = questions
        places, texts, *asked = inputs.align(**given)
        found = write_texts(
            writer,
            pixels,
            writer.rows(texts, asked[0] if asked else None),
            np.array(places),
            config,
            seed=seed,
            batch_size=self.batch_size,
        )
        return found if config.num_return_sequences > 1 else [row[0] for row in found]

    def _decoding(self, name: str, what: str) -> DecodingConfig:
        """The settings that a call begins with."""
        if not name:
            return ANSWER if what == "answer" else CAPTION
        first, _, evaluation = name.partition("_")
        if first != "original":
            raise ValueError(
                f"decoding {name!r}: there are '', 'original', 'original_coco' and "
                "'original_nocaps'"
            )
        sizes = self.model.config.language_model
        families = {type(None): "qformer", OPTConfig: "opt", T5Config: "t5"}
        return authors(evaluation or what, families[type(sizes)])

    @functools.cached_property
    def _writer(self) -> TextGenerator:
        """The decoder with the tokenizer it needs."""
        if isinstance(self.model, Blip2Stage1):
            if self._absent:
                raise ValueError(
                    "this stage-1 model came without the head that writes captions "
                    "(Hugging Face keeps none): it can match and give features"
                )
            return QFormerGenerator(self.model, self.params, self.qformer_tokenizer)
        if self._language_tokenizer is None:
            raise ValueError("this model was put together without a language_tokenizer")
        return LanguageModelGenerator(
            self.model, self.params, self._language_tokenizer, self._qformer_tokenizer
        )

    @property
    def qformer_tokenizer(self) -> QFormerTokenizer:
        """Of the texts that the Q-Former reads or writes.

        Raises:
          ValueError: the model came without one.
        """
        if self._qformer_tokenizer is None:
            raise ValueError("this model was put together without a qformer_tokenizer")
        return self._qformer_tokenizer

    def _template(self) -> str:
        """How questions are asked: as in training, or as the paper does."""
        if self._question_prompt:
            return self._question_prompt
        tokenizer = self._language_tokenizer
        if tokenizer is not None and tokenizer.family == "decoder_only":
            return prompting.QUESTION_PROMPT
        return prompting.SHORT_ANSWER_PROMPT

    def _images(
        self, images: Any, features: Any, several: bool = False
    ) -> Shaped[Array, "B ..."]:
        """What the model's `encode_image` takes, of whichever was given."""
        vision = self.model.config.vision
        return inputs.as_model_images(vision, images, features, several=several)

    def _tokens(
        self, texts: Sequence[str]
    ) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
        """[CLS] text [SEP], whole, padded to a bucket."""
        tokenizer = self.qformer_tokenizer
        most = self.model.config.qformer.max_positions
        longest = max(len(tokenizer.encode_words(text)) + 2 for text in texts)
        if longest > most:
            raise ValueError(f"a text has {longest} tokens, the Q-Former reads {most}")
        return tokenizer.encode(texts, inputs.bucket(longest, TEXT_STEP, most))

    def _batched(self, name: str, *rows: Shaped[Array, "B ..."]) -> dict[str, Array]:
        """A compiled pass over all rows, a chunk at a time."""
        parts = []
        for where, size in inputs.chunks(len(rows[0]), self.batch_size):
            part = [inputs.padded(array[where], size) for array in rows]
            placed = sharding.place_rows_like(self.params, part)
            found = hosts.to_host(_PASSES[name](self.model, self.params, *placed))
            count = where.stop - where.start
            parts.append({key: values[:count] for key, values in found.items()})
        return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}

    def _need_stage(self, stage: int, what: str) -> None:
        """Refuse what the other stage's models do."""
        is_stage1 = isinstance(self.model, Blip2Stage1)
        if is_stage1 == (stage == 1):
            return
        if is_stage1:
            raise ValueError(
                f"{what} needs a language model, and this is a stage-1 model: it can "
                "caption, match and give features"
            )
        raise ValueError(
            f"{what} needs the heads of stage 1, and this is a stage-2 model: it can "
            "caption, answer, generate and give features with mode='image'"
        )

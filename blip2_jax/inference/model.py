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

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float, PyTree
from numpy import ndarray as Array

from blip2_jax.data.text.chat import Prompt
from blip2_jax.data.text.tokenizers import QFormerTokenizer
from blip2_jax.inference import embeddings, inputs, scoring, word_attention
from blip2_jax.inference.batched_model import BatchedModel, Questions
from blip2_jax.inference.describe import describe_model
from blip2_jax.inference.dialogue import Turn
from blip2_jax.inference.scoring import RankedText, TextScores
from blip2_jax.inference.word_attention import WordAttention
from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.parallel import hosts, sharding


class PromptSize(NamedTuple):
    """Size of a prompt in tokens.

    Attributes:
      tokens: number of tokens that the model reads, start token included.
      shape: padded lengths of the token arrays of the prompt. Prompts of equal shape
        run in the same compiled program.
    """

    tokens: int
    shape: tuple[int, ...]


class Blip2(BatchedModel):
    """A model with its parameters and tokenizers; base of both stages.

    Attributes:
      model: the Flax module.
      params: its parameters. If they are sharded over a mesh, rows are sharded too.
      prompt: default start of captions.
      batch_size: number of rows of the largest compiled program; larger inputs are
        processed in several batches.
      origin: where the model comes from, for `repr`; "" if it was built from parts.
    """

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
        return_scores: bool = False,
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
          return_scores: return a `scoring.ScoredText` in place of each string: the text
            with log-probabilities.
          **settings: fields of `DecodingConfig` to change.

        Returns:
          A string per row, or a list of strings per row if `num_return_sequences` > 1.

        Raises:
          ValueError: inputs or settings are wrong.
        """
        config = self._decoding_config(decoding, "generate", settings)
        prompts = inputs.as_texts(self.prompt if prompt is None else prompt, "prompts")
        rows = self._image_arrays(images, features, self._accepts_several_images)
        return self._generate_texts(
            rows,
            prompts,
            config,
            seed,
            sample_ids=sample_ids,
            return_scores=return_scores,
        )

    def score(
        self,
        images: Any = None,
        texts: str | Sequence[str] = (),
        prompts: str | Sequence[str] | None = None,
        *,
        questions: str | Sequence[str] | None = None,
        question_prompt: str = "",
        image_of: Sequence[int] | None = None,
        features: Any = None,
    ) -> TextScores:
        """Compute the log-probabilities of given texts.

        Rows that share an image and a prompt are computed together: the image is
        encoded and the prompt is read once.

        Args:
          images: as in `caption`.
          texts: the texts, one for all rows or one per row.
          prompts: what the texts follow, one for all or one per row; None selects the
            model's own.
          questions: questions that the texts answer, in place of prompts (stage 2).
          question_prompt: template of questions with `{}` in place of the question, if
            not the model's own.
          image_of: index into `images` for each row; each image is encoded once.
          features: as in `caption`.

        Raises:
          ValueError: inputs are wrong, or a text is too long for the model.
        """
        row_prompts, qformer_questions = self._prompts_of(
            prompts, questions, question_prompt
        )
        return self._score_texts(
            self._image_arrays(images, features, self._accepts_several_images),
            inputs.as_texts(texts, "texts"),
            row_prompts,
            qformer_questions,
            image_of,
        )

    def rank(
        self,
        images: Any = None,
        candidates: Sequence[Any] = (),
        prompts: str | Sequence[str] | None = None,
        *,
        questions: str | Sequence[str] | None = None,
        question_prompt: str = "",
        length_penalty: float = 0.0,
        image_of: Sequence[int] | None = None,
        features: Any = None,
    ) -> list[list[RankedText]]:
        """Rank candidate texts, such as answers or names of classes.

        Args:
          images: as in `caption`.
          candidates: a list of texts for all rows, or one list per row.
          prompts: as in `score`.
          questions: as in `score`.
          question_prompt: as in `score`.
          length_penalty: log-probabilities are divided by length ** length_penalty.
            0 ranks by their sum, as the original does; 1 ranks by their mean.
          image_of: as in `score`.
          features: as in `caption`.

        Returns:
          For each row its candidates, best first.

        Raises:
          ValueError: as `score`.
        """
        row_prompts, qformer_questions = self._prompts_of(
            prompts, questions, question_prompt
        )
        rows = self._image_arrays(images, features, self._accepts_several_images)
        columns: dict[str, Any] = {
            "candidates": scoring.as_candidates(candidates),
            "images": inputs.image_indices(image_of, len(rows)),
            "prompts": row_prompts,
        }
        if qformer_questions is not None:
            columns["questions"] = qformer_questions
        lists, *columns_per_row = inputs.align(**columns)
        indices, row_prompts, *more = (
            [value for texts, value in zip(lists, column, strict=True) for _ in texts]
            for column in columns_per_row
        )
        scores = self._score_texts(
            rows,
            [text for texts in lists for text in texts],
            row_prompts,
            more[0] if more else None,
            indices,
        )
        return scoring.rank_texts(lists, scores, length_penalty)

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

    def word_attention(
        self,
        image: Any = None,
        text: str | None = None,
        prompt: str | None = None,
        *,
        question: str | None = None,
        history: Sequence[Turn] = (),
        features: Any = None,
    ) -> WordAttention:
        """Compute where the queries looked for each word of a text about an image.

        Args:
          image: one image as described in the module docstring.
          text: what the model wrote, or any other text; None: what it writes, with the
            default settings of `caption`, or of `answer` if there is a question.
          prompt: what the text follows; None selects the model's own.
          question: that the text answers, in place of a prompt (stage 2).
          history: earlier turns, which precede the question.
          features: as in `caption`.

        Returns:
          The words, and a map of the patches for each; see `inference.word_attention`.

        Raises:
          ValueError: inputs are wrong, there are several images, or the text has no
            words.
        """
        rows = self._image_arrays(image, features)
        if len(rows) != 1:
            raise ValueError(f"word_attention takes one image, not {len(rows)}")
        prompts, questions = self._prompts_of(prompt, question, "", history)
        if text is None:
            method = "generate" if question is None else "answer"
            config = self._decoding_config("", method, {})
            text = self._generate_texts(rows, prompts, config, 0, questions)[0]
        (row_prompt,) = prompts
        prompt_arrays = self._prompt_arrays(prompts, questions)
        ids = self._text_ids(prompts, [text])[0]
        self._check_lengths(prompt_arrays, 1, len(ids))
        words, owners = word_attention.group_tokens(self._detokenize, ids[:-1])
        target = self._target_arrays(prompt_arrays, row_prompt, text)
        selection = word_attention.select_words(len(words), owners, target)
        rows, arrays = sharding.place_rows_like(self.params, (rows, target.arrays))
        maps = word_attention.word_relevance(
            self.model, self.params, rows, arrays, selection
        )
        relevance = hosts.to_host(maps)[None, : len(words)]
        vision = self.model.config.vision
        return WordAttention(words, embeddings.patch_grids(relevance, vision)[0])

    def prompt_size(
        self,
        prompt: str | None = None,
        *,
        question: str | None = None,
        history: Sequence[Turn] = (),
        question_prompt: str = "",
    ) -> PromptSize:
        """Measure the prompt of one row.

        Args:
          prompt: as in `caption`.
          question: a question, in place of a prompt (stage 2).
          history: earlier turns, which precede the question.
          question_prompt: as in `score`.

        Raises:
          ValueError: inputs are wrong, or the Q-Former cannot read the question.
        """
        prompts, questions = self._prompts_of(
            prompt, question, question_prompt, history
        )
        arrays = self._prompt_arrays(prompts, questions)
        ids, *more = arrays
        tokens = int(more[0].sum()) if more else ids.size  # the mask comes second
        return PromptSize(tokens, tuple(s for a in arrays for s in a.shape[1:]))

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a generated text, without its end token."""
        return len(self._text_ids([""], inputs.as_texts(text, "texts"))[0]) - 1

    def _prompts_of(
        self,
        prompts: str | Sequence[str] | None,
        questions: str | Sequence[str] | None,
        question_prompt: str,
        history: Sequence[Turn] = (),
    ) -> tuple[Sequence[Prompt], Questions | None]:
        """Return the prompts of texts to score, and what the Q-Former reads.

        Raises:
          ValueError: questions are given to a model that answers none, or with prompts.
        """
        del question_prompt, history  # of models that answer questions
        if questions is not None:
            raise ValueError("questions need a language model; this is a stage-1 model")
        prompts = self.prompt if prompts is None else prompts
        return inputs.as_texts(prompts, "prompts"), None

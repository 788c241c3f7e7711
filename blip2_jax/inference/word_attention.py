"""Where the queries looked for each word: gradient-weighted cross-attention.

With the cross-attention weights A_b [H, Q, P] of the Q-Former's block b, and the
log-probability of a word w (the sum over its tokens), the map of the word is

    R_w[p] = mean over b, h, q of max(0, A_b[h, q, p] * d log p(w) / d A_b[h, q, p])

as Chefer, Gur and Wolf (2021, equation 5) weight attention by gradients. The weights
alone are the same for all words: the queries read the image before the first word. The
gradient selects the weights on which this word depends, and the positive part those
that make it more probable. Their rules for residuals and self-attention are not used.

The product A * dA is the gradient by a factor of A at 1, so that the model is run with
such factors (`gates`), and the weights themselves are not returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from blip2_jax.data.text.prompts import QUERIES_HERE
from blip2_jax.data.text.tokenizers import pad_rows
from blip2_jax.inference import inputs, programs
from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.blip2_stage2 import Blip2Stage2

_WORDS_AT_ONCE = 8  # backward passes that are computed together


class WordAttention(NamedTuple):
    """The words of a text, and where the queries looked for each.

    Attributes:
      words: separated by spaces in the text.
      maps: R_w of the patches, row by row from the top left.
    """

    words: list[str]
    maps: Float[np.ndarray, "words grid grid"]


class TargetArrays(NamedTuple):
    """A text and what the model predicts it from.

    Attributes:
      arrays: [1, T] each, as the model's training reads them.
      first: index of the text's first token among the predictions.
    """

    arrays: Mapping[str, Shaped[np.ndarray, "1 T"]]
    first: int


def decoder_only_target(
    prompt_ids: Int[np.ndarray, "1 T"],
    prompt_mask: Bool[np.ndarray, "1 T"],
    text_ids: Sequence[int],
    pad_id: int,
) -> TargetArrays:
    """Build what a decoder-only model reads of a prompt and a text.

    Args:
      prompt_ids: the prompt, padded on the left; see `generation_prompts`.
      prompt_mask: True = a real token.
      text_ids: tokens of the text.
      pad_id: fills the row.
    """
    row = [*prompt_ids[prompt_mask].tolist(), *text_ids]
    length = inputs.padded_length(len(row))
    ids, mask = pad_rows([row], length, pad_id)
    arrays = {"text_ids": ids, "text_mask": mask, "target_mask": mask}
    mark = prompt_ids[0] == QUERIES_HERE
    if mark.any():
        before = prompt_mask[0, : mark.argmax()].sum()
        arrays["queries_here"] = np.arange(length)[None] == before
    return TargetArrays(arrays, len(row) - len(text_ids))


def group_tokens(
    detokenize: Callable[[Any], str], ids: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Split a text into words.

    Args:
      detokenize: converts tokens to text.
      ids: tokens of the text.

    Returns:
      The words, and the index of the word that each token belongs to.

    Raises:
      ValueError: there are no words.
    """
    words = detokenize(np.array(ids)).split()
    if not words:
        raise ValueError("the text has no words")
    counts = [
        len(detokenize(np.array(ids[:end])).split()) for end in range(1, len(ids) + 1)
    ]
    return words, [min(max(count, 1), len(words)) - 1 for count in counts]


def select_words(
    words: int, owners: Sequence[int], target: TargetArrays
) -> Float[np.ndarray, "words T"]:
    """Return 1 where a predicted token belongs to a word; rows are padded with zeros.

    Args:
      words: number of words.
      owners: index of the word of each token of the text.
      target: where the tokens stand.
    """
    length = max(array.shape[1] for array in target.arrays.values())
    selection = np.zeros((inputs.padded_length(words), length), np.float32)
    selection[list(owners), target.first + np.arange(len(owners))] = 1
    return selection


@programs.compile_function(static=("model",))
def word_relevance(
    model: Blip2Base,
    params: PyTree,
    image: Shaped[Array, "1 ..."],
    arrays: Mapping[str, Shaped[Array, "1 T"]],
    selection: Float[Array, "words T"],
) -> Float[Array, "words P"]:
    """Compute R_w over the image tokens; see the module's docstring.

    Args:
      model: Flax module.
      params: its parameters.
      image: one image, or its features.
      arrays: from `TargetArrays`.
      selection: from `select_words`.
    """
    bound = model.bind({"params": params})
    features = bound.encode_image(image)

    def log_probs(gates: Any) -> Float[Array, " T"]:
        values = _log_probs(bound, features, arrays, gates)[0]
        return jnp.pad(values, (0, selection.shape[1] - len(values)))

    _, gradient = jax.vjp(log_probs, bound.attention_gates())

    def relevance(word: Float[Array, " T"]) -> Float[Array, " P"]:
        (blocks,) = gradient(word)
        return jax.nn.relu(jnp.stack(blocks)).mean(axis=(0, 1, 2, 3))

    return jax.lax.map(relevance, selection, batch_size=_WORDS_AT_ONCE)


def _log_probs(
    bound: Any, features: Any, arrays: Mapping[str, Any], gates: Any
) -> Float[Array, "1 T"]:
    """Return the log-probability of each predicted token."""
    if isinstance(bound, Blip2Stage2):
        question = (arrays.get("question_ids"), arrays.get("question_mask"))
        queries = bound.encode_queries(features, *question, gates=gates)
        logits, targets, _ = bound.language_model.training_logits(
            bound.project(queries), arrays
        )
    else:
        ids, mask = arrays["text_ids"], arrays["text_mask"]
        image = bound.image_keys_values(features)
        _, cache = bound.qformer.query_pass(bound.query_tokens, image, gates=gates)
        hidden = bound.qformer.generate_pass(ids, mask, cache)
        logits, targets = bound.qformer.lm_logits(hidden[:, :-1]), ids[:, 1:]
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]

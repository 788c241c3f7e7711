"""`load_captioner` and `load_clip`: open the two models of CapFilt."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from blip2_jax.convert.blip import open_blip
from blip2_jax.convert.clip import open_clip
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.opened_model import OpenedModel
from blip2_jax.data import hub
from blip2_jax.data.text.tokenizers import load_clip_tokenizer, load_tokenizer
from blip2_jax.inference.blip_captioner import PROMPT, BlipCaptioner
from blip2_jax.inference.clip_scorer import ClipScorer
from blip2_jax.models.blip import Blip
from blip2_jax.models.vision.clip import Clip
from blip2_jax.nn.precision import PRECISIONS
from blip2_jax.nn.trees import Tree, unflatten


def load_captioner(
    path: str | pathlib.Path,
    *,
    tokenizer: str = "",
    prompt: str = PROMPT,
    image_size: int | None = None,
    precision: str | None = None,
    batch_size: int = 16,
) -> BlipCaptioner:
    """Load BLIP's captioner onto the first device.

    Args:
      path: a Hugging Face folder of `BlipForConditionalGeneration`, a file of the
        authors, such as `model_large_caption.pth`, or a name of the hub, such as
        "Salesforce/blip-image-captioning-large".
      tokenizer: directory or name of the hub of BERT's tokenizer; "": the folder's own.
      prompt: start of all captions.
      image_size: other than the model's own, in pixels; position embeddings are
        interpolated.
      precision: "float32" or "bfloat16"; None: bfloat16 if the file holds parameters of
        16 bits.
      batch_size: images of the largest compiled program.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: the path holds no captioner, or no tokenizer is named. The subclass
        SourceError says what is wrong.
    """
    source = open_blip(_checkpoint(path), image_size)
    spec = _tokenizer_spec(tokenizer, source, path, "BERT's", "bert-base-uncased")
    dtype = _dtype(precision, source)
    return BlipCaptioner(
        Blip(source.config, dtype),
        _place(source, dtype),
        load_tokenizer(spec, language_model=False),
        prompt=prompt,
        batch_size=batch_size,
        origin=str(path),
    )


def load_clip(
    path: str | pathlib.Path,
    *,
    tokenizer: str = "",
    precision: str | None = None,
    batch_size: int = 64,
) -> ClipScorer:
    """Load CLIP onto the first device.

    Args:
      path: a Hugging Face folder of `CLIPModel`, or a name of the hub, such as
        "openai/clip-vit-large-patch14".
      tokenizer: directory or name of the hub of CLIP's tokenizer; "": the folder's own.
      precision: as in `load_captioner`.
      batch_size: images or texts of the largest compiled program.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: as `load_captioner`.
    """
    source = open_clip(_checkpoint(path))
    name = "openai/clip-vit-large-patch14"
    spec = _tokenizer_spec(tokenizer, source, path, "CLIP's", name)
    dtype = _dtype(precision, source)
    return ClipScorer(
        Clip(source.config, dtype),
        _place(source, dtype),
        load_clip_tokenizer(spec),
        batch_size=batch_size,
        origin=str(path),
    )


def _checkpoint(path: str | pathlib.Path) -> CheckpointFiles:
    """Open the files of a model, of the hub with its tokenizer's."""
    local = hub.local_path(path, *hub.TOKENIZER_FILES)
    if not local.exists():
        raise FileNotFoundError(
            f"no file or folder {str(path)!r}; models of the Hugging Face hub are "
            "named ORG/NAME or hf://ORG/NAME"
        )
    return CheckpointFiles(path)


def _tokenizer_spec(
    tokenizer: str,
    source: OpenedModel[Any],
    path: str | pathlib.Path,
    owner: str,
    example: str,
) -> str:
    """Return the tokenizer to load: the user's choice or the model's own.

    Raises:
      SourceError: there is neither.
    """
    spec = tokenizer or source.tokenizer
    if not spec:
        raise SourceError(
            f"{path} has no tokenizer: name a directory or a repository of the hub "
            f"that has {owner} (tokenizer={example!r})"
        )
    return spec


def _dtype(precision: str | None, source: OpenedModel[Any]) -> jnp.dtype:
    """Return the dtype to compute in.

    Raises:
      ValueError: there is no such precision.
    """
    precision = precision or source.arrays.precision
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}"
        )
    return jnp.dtype(precision)


def _place(source: OpenedModel[Any], dtype: jnp.dtype) -> Tree:
    """Read the parameters one by one and put them on the first device."""
    return unflatten(
        {
            path: jax.device_put(source.arrays[path].astype(dtype))
            for path in source.arrays
        }
    )

"""Tokenizer and processor of an exported Hugging Face folder."""

from __future__ import annotations

import pathlib
from typing import Any

from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.data.text.tokenizer_files import open_tokenizer
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.models.sizes import ViTConfig

IMAGE_TOKEN = "<image>"  # stands for one query in transformers' prompts
# File: (name of a class in transformers 5, its name in earlier versions).
OLDER_CLASS_NAMES = {
    "processor_config.json": ("BlipImageProcessorPil", "BlipImageProcessor"),
    "tokenizer_config.json": ("TokenizersBackend", "PreTrainedTokenizerFast"),
}


class ExportedTokenizer:
    """transformers' tokenizer of a model, with the token `<image>` in stage 2.

    Attributes:
      tokenizer: transformers' object.
      qformer_tokenizer: that of a Q-Former which reads the prompt; None for others.
      ours: the same tokenizer as this package loads it.
      image_id: id of `<image>`; None in stage 1.
      rows: rows that the token tables need.
      added: rows that they have to grow by.
    """

    def __init__(self, model: ModelSource) -> None:
        stage2 = model.stage == 2
        spec = _tokenizer_of(model, "language_model" if stage2 else "qformer")
        self.ours = load_tokenizer(
            spec, language_model=stage2, prompt_template=model.prompt_template
        )
        ours = model.config.language_model
        pads_left = ours is not None and not ours.is_encoder_decoder
        side = "left" if pads_left else "right"
        self.tokenizer = open_tokenizer(spec, stage2, padding_side=side)
        self.qformer_tokenizer: Any = None
        if model.prompt_in_qformer:
            qformer_spec = _tokenizer_of(model, "qformer")
            self.qformer_tokenizer = open_tokenizer(
                qformer_spec, False, padding_side="right"
            )
            self.qformer_tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        self.image_id: int | None = None
        self.rows = self.added = 0
        if stage2:
            self.tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
            self.image_id = self.tokenizer.get_vocab()[IMAGE_TOKEN]
            language_model = model.config.language_model
            assert language_model is not None
            self.rows = max(language_model.vocab_size, len(self.tokenizer))
            self.added = self.rows - language_model.vocab_size
        else:
            self.tokenizer.add_special_tokens({"bos_token": "[DEC]"})

    def save(self, folder: pathlib.Path, model: ModelSource) -> None:
        """Write tokenizer and processor, readable by transformers 4 too."""
        from transformers import Blip2Processor, InstructBlipProcessor
        from transformers.models.blip import BlipImageProcessorPil

        vision = model.config.vision
        assert isinstance(vision, ViTConfig)
        size = {"height": vision.image_size, "width": vision.image_size}
        queries = model.config.num_visual_tokens if model.stage == 2 else None
        parts: list[Any] = [BlipImageProcessorPil(size=size), self.tokenizer]
        kind: Any = Blip2Processor
        if self.qformer_tokenizer is not None:
            parts.append(self.qformer_tokenizer)
            kind = InstructBlipProcessor
        kind(*parts, num_query_tokens=queries).save_pretrained(folder)
        for name, (new, old) in OLDER_CLASS_NAMES.items():
            for file in folder.rglob(name):
                file.write_text(file.read_text().replace(new, old))


def _tokenizer_of(model: ModelSource, part: str) -> str:
    """Return the tokenizer of a part, "qformer" or "language_model".

    Raises:
      SourceError: the model names none.
    """
    owner, option, spec = {
        "qformer": ("Q-Former", "--qformer_tokenizer", model.qformer_tokenizer),
        "language_model": (
            "language model",
            "--language_tokenizer",
            model.language_tokenizer,
        ),
    }[part]
    if not spec:
        raise SourceError(
            "a Hugging Face folder has a tokenizer, but the source names none of the "
            f"{owner} ({option})"
        )
    return spec

"""Export of a model as a Hugging Face BLIP-2 folder.

The folder is complete: weights in shards, configuration, generation settings, tokenizer
and processor, as `from_pretrained` of `Blip2ForConditionalGeneration` and
`Blip2Processor` (stage 1: `Blip2ForImageTextRetrieval`) expects.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.files.output import (
    ShardWriter,
    atomic_output,
    cast,
    progress,
    write_json,
)
from blip2_jax.convert.huggingface_folder import huggingface_rules
from blip2_jax.convert.language_families.registry import FAMILIES
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.convert.tables.name_table import Rule, shorten
from blip2_jax.convert.vocabulary import TOKEN_AXES
from blip2_jax.data.text.tokenizers import (
    LanguageTokenizer,
    load_tokenizer,
    tokenizer_directory,
)
from blip2_jax.models.sizes import ViTConfig

IMAGE_TOKEN = "<image>"  # stands for one query in transformers' prompts
STAGE1, STAGE2 = "Blip2ForImageTextRetrieval", "Blip2ForConditionalGeneration"
# File: (name of a class in transformers 5, its name in earlier versions).
OLDER_CLASS_NAMES = {
    "processor_config.json": ("BlipImageProcessorPil", "BlipImageProcessor"),
    "tokenizer_config.json": ("TokenizersBackend", "PreTrainedTokenizerFast"),
}


def write_huggingface(
    model: ModelSource, output: pathlib.Path, dtype: str | None = None
) -> list[str]:
    """Write a folder, which appears only when it is complete.

    Args:
      model: the model to export.
      output: path of the folder.
      dtype: of all floating-point arrays; None keeps each one's own.

    Returns:
      Lines for the user: arrays that were left out or added.

    Raises:
      SourceError: transformers has no such model.
      FileExistsError: the output exists.
    """
    if model.question_in_qformer:
        raise SourceError("transformers has no Q-Former that reads questions")
    try:
        rules = huggingface_rules(model.config)
    except ValueError as error:
        raise SourceError(str(error)) from error
    tokenizer = _ExportedTokenizer(model)
    with atomic_output(output) as folder:
        folder.mkdir(parents=True)
        stored = _write_weights(model, rules, tokenizer.rows, folder, dtype)
        config = _config(model, tokenizer, stored)
        config.save_pretrained(folder)
        if model.stage == 2:
            settings = _generation_config(model, tokenizer)
            write_json(folder / "generation_config.json", settings)
        tokenizer.save(folder, model)
    return _report(model, rules, tokenizer)


def _write_weights(
    model: ModelSource,
    rules: list[Rule],
    rows: int,
    folder: pathlib.Path,
    dtype: str | None,
) -> str:
    """Write all arrays, rule by rule.

    Args:
      model: the model to export.
      rules: the name table.
      rows: of the token tables.
      folder: where to write.
      dtype: of all floating-point arrays; None keeps each one's own.

    Returns:
      The dtype for `config.json`. transformers casts all arrays to it, so it is wide
      enough that no array is rounded.
    """
    writer, dtypes = ShardWriter(folder), set[np.dtype]()
    for rule in progress(rules, "converting"):
        ours = {path: model.arrays[path] for path in rule.paths()}
        aliases = set(rule.aliases)  # transformers ties them itself
        for name, source_array in rule.to_source(ours).items():
            if name in aliases:
                continue
            array = np.asarray(source_array)
            if rule.targets[0] in TOKEN_AXES:
                array = _with_rows(array, rows)
            array = cast(array, dtype)
            writer.add(name, array)
            dtypes.add(array.dtype)
    writer.close()
    if len(dtypes) == 1:
        return dtypes.pop().name
    return "float32"  # the narrowest that holds both float16 and bfloat16


def _with_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Append rows of zeros until there are `rows`."""
    added = np.zeros((max(rows - len(array), 0), *array.shape[1:]), array.dtype)
    return np.concatenate([array, added]) if len(added) else array


class _ExportedTokenizer:
    """transformers' tokenizer of a model, with the token `<image>` in stage 2.

    Attributes:
      tokenizer: transformers' object.
      ours: the same tokenizer as this package loads it.
      image_id: id of `<image>`; None in stage 1.
      rows: rows that the token tables need.
      added: rows that they have to grow by.
    """

    def __init__(self, model: ModelSource) -> None:
        stage2 = model.stage == 2
        spec = model.language_tokenizer if stage2 else model.qformer_tokenizer
        if not spec:
            owner, option = (
                ("language model", "--language_tokenizer")
                if stage2
                else ("Q-Former", "--qformer_tokenizer")
            )
            raise SourceError(
                "a Hugging Face folder has a tokenizer, but the source names none of "
                f"the {owner} ({option})"
            )
        from transformers import AutoTokenizer

        self.ours = load_tokenizer(spec, language_model=stage2)
        ours = model.config.language_model
        pads_left = ours is not None and not ours.is_encoder_decoder
        self.tokenizer = AutoTokenizer.from_pretrained(
            str(tokenizer_directory(spec)),
            padding_side="left" if pads_left else "right",
            local_files_only=True,
            trust_remote_code=False,
        )
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
        from transformers import Blip2Processor
        from transformers.models.blip import BlipImageProcessorPil

        vision = model.config.vision
        assert isinstance(vision, ViTConfig)
        size = {"height": vision.image_size, "width": vision.image_size}
        queries = model.config.qformer.num_queries if model.stage == 2 else None
        processor = Blip2Processor(
            BlipImageProcessorPil(size=size), self.tokenizer, num_query_tokens=queries
        )
        processor.save_pretrained(folder)
        for name, (new, old) in OLDER_CLASS_NAMES.items():
            file = folder / name
            file.write_text(file.read_text().replace(new, old))


def _config(model: ModelSource, tokenizer: _ExportedTokenizer, dtype: str) -> Any:
    """Return transformers' `Blip2Config` of a model."""
    from transformers import Blip2Config as TheirConfig

    ours, vision = model.config, model.config.vision
    assert isinstance(vision, ViTConfig)
    qformer, stage2 = ours.qformer, model.stage == 2
    return TheirConfig(
        vision_config={
            "hidden_size": vision.width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.mlp_dim,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": vision.activation,
            "layer_norm_eps": vision.layer_norm_eps,
            "qkv_bias": True,
        },
        qformer_config={
            "vocab_size": qformer.vocab_size,
            "hidden_size": qformer.width,
            "num_hidden_layers": qformer.depth,
            "num_attention_heads": qformer.heads,
            "intermediate_size": qformer.mlp_dim,
            "hidden_act": qformer.activation,
            "hidden_dropout_prob": qformer.dropout,
            "attention_probs_dropout_prob": qformer.dropout,
            "max_position_embeddings": qformer.max_positions,
            "layer_norm_eps": qformer.layer_norm_eps,
            "cross_attention_frequency": qformer.cross_attention_every,
            "encoder_hidden_size": vision.width,
            "use_qformer_text_input": not stage2,
        },
        text_config=_text_config(model, tokenizer) if stage2 else None,
        num_query_tokens=qformer.num_queries,
        image_text_hidden_size=qformer.projection_dim,
        image_token_index=tokenizer.image_id,
        architectures=[STAGE2 if stage2 else STAGE1],
        dtype=dtype,
    )


def _text_config(model: ModelSource, tokenizer: _ExportedTokenizer) -> dict[str, Any]:
    """Return transformers' configuration of the language model."""
    ours = model.config.language_model
    assert ours is not None and isinstance(tokenizer.ours, LanguageTokenizer)
    family = FAMILIES[ours.family]
    return family.write(ours, tokenizer.rows, tokenizer.ours.end_id)


def _generation_config(
    model: ModelSource, tokenizer: _ExportedTokenizer
) -> dict[str, Any]:
    """Return the content of `generation_config.json`."""
    config = _text_config(model, tokenizer)
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    settings = {name: config[name] for name in names if name in config}
    if tokenizer.added:
        # The logit of an added row of zeros is 0, which may be the largest.
        settings["suppress_tokens"] = [tokenizer.image_id]
    return settings


def _report(
    model: ModelSource, rules: list[Rule], tokenizer: _ExportedTokenizer
) -> list[str]:
    """Return lines for the user on arrays that were left out or added."""
    written = {path for rule in rules for path in rule.paths()}
    left_out = [path for path in model.arrays if path not in written]
    lines = []
    if left_out:
        architecture = STAGE2 if model.stage == 2 else STAGE1
        lines.append(
            f"{len(left_out)} arrays have no place in {architecture}: "
            f"{shorten(left_out, 3)}"
        )
    vision, eps = model.config.vision, model.config.ln_vision_eps
    assert isinstance(vision, ViTConfig)
    if eps != vision.layer_norm_eps:
        lines.append(
            f"transformers computes ln_vision with the epsilon of the image encoder, "
            f"{vision.layer_norm_eps}, this package with {eps}"
        )
    if tokenizer.added:
        lines.append(
            f"{tokenizer.added} row added to the token table for {IMAGE_TOKEN}, which "
            "is never generated"
        )
    return lines

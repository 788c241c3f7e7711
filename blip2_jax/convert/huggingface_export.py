"""Export of a model as a Hugging Face BLIP-2 or InstructBLIP folder.

The folder is complete: weights in shards, configuration, generation settings, tokenizer
and processor, as `from_pretrained` of `Blip2ForConditionalGeneration` and
`Blip2Processor` (stage 1: `Blip2ForImageTextRetrieval`) expects. A model whose Q-Former
reads the prompt is an `InstructBlipForConditionalGeneration`.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from blip2_jax.convert.exported_tokenizer import IMAGE_TOKEN, ExportedTokenizer
from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.files.json_files import read_json_object
from blip2_jax.convert.files.output import (
    ShardWriter,
    atomic_output,
    cast,
    progress,
    write_json,
)
from blip2_jax.convert.huggingface_folder import huggingface_rules
from blip2_jax.convert.instructblip_folder import instructblip_rules
from blip2_jax.convert.language_families.registry import FAMILIES
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.convert.tables.name_table import Rule, shorten
from blip2_jax.convert.vocabulary import TOKEN_AXES
from blip2_jax.data.text.tokenizers import LanguageTokenizer
from blip2_jax.models.sizes import ViTConfig

STAGE1, STAGE2 = "Blip2ForImageTextRetrieval", "Blip2ForConditionalGeneration"
INSTRUCTED = "InstructBlipForConditionalGeneration"


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
    if model.question_in_qformer and not model.prompt_in_qformer:
        raise SourceError(
            "transformers has no Q-Former that reads questions: InstructBLIP's reads "
            "whole prompts"
        )
    table = instructblip_rules if model.prompt_in_qformer else huggingface_rules
    try:
        rules = table(model.config)
    except ValueError as error:
        raise SourceError(str(error)) from error
    tokenizer = ExportedTokenizer(model)
    with atomic_output(output) as folder:
        folder.mkdir(parents=True)
        stored = _write_weights(model, rules, tokenizer.rows, folder, dtype)
        config = _config(model, tokenizer, stored)
        config.save_pretrained(folder)
        if model.stage == 2:
            _keep_head_apart(folder / "config.json", _text_config(model, tokenizer))
            settings = _generation_config(model, tokenizer)
            write_json(folder / "generation_config.json", settings)
        tokenizer.save(folder, model)
    return _report(model, rules, tokenizer)


def architecture(model: ModelSource) -> str:
    """Return the name of a model's class in transformers."""
    if model.prompt_in_qformer:
        return INSTRUCTED
    return STAGE1 if model.stage == 1 else STAGE2


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


def _config(model: ModelSource, tokenizer: ExportedTokenizer, dtype: str) -> Any:
    """Return transformers' `Blip2Config` or `InstructBlipConfig` of a model."""
    import transformers

    ours, vision = model.config, model.config.vision
    assert isinstance(vision, ViTConfig)
    qformer, stage2 = ours.qformer, model.stage == 2
    kind: Any = transformers.InstructBlipConfig
    of_blip2: dict[str, Any] = {}
    reads_text: dict[str, Any] = {}
    if not model.prompt_in_qformer:
        kind = transformers.Blip2Config
        of_blip2 = {"image_text_hidden_size": qformer.projection_dim}
        reads_text = {"use_qformer_text_input": not stage2}
    return kind(
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
            **reads_text,
        },
        text_config=_text_config(model, tokenizer) if stage2 else None,
        num_query_tokens=qformer.num_queries,
        image_token_index=tokenizer.image_id,
        architectures=[architecture(model)],
        dtype=dtype,
        **of_blip2,
    )


def _text_config(model: ModelSource, tokenizer: ExportedTokenizer) -> dict[str, Any]:
    """Return transformers' configuration of the language model."""
    ours = model.config.language_model
    assert ours is not None and isinstance(tokenizer.ours, LanguageTokenizer)
    family = FAMILIES[ours.family]
    return family.write(ours, tokenizer.rows, tokenizer.ours.end_id)


def _keep_head_apart(file: pathlib.Path, text_config: dict[str, Any]) -> None:
    """Write again whether the head is the token table, which transformers 5 replaces.

    Of a T5, earlier versions scale the decoder's output if this is true.
    """
    content = read_json_object(file)
    name = "tie_word_embeddings"
    content["text_config"][name] = text_config[name]
    write_json(file, content)


def _generation_config(
    model: ModelSource, tokenizer: ExportedTokenizer
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
    model: ModelSource, rules: list[Rule], tokenizer: ExportedTokenizer
) -> list[str]:
    """Return lines for the user on arrays that were left out or added."""
    written = {path for rule in rules for path in rule.paths()}
    left_out = [path for path in model.arrays if path not in written]
    lines = []
    if left_out:
        lines.append(
            f"{len(left_out)} arrays have no place in {architecture(model)}: "
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

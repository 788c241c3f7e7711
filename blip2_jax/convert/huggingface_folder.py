"""Hugging Face's BLIP-2 folders, opened and written.

What is written is complete: weights in shards, configuration, generation settings,
tokenizer and processor, as `from_pretrained` of `Blip2ForConditionalGeneration` and
`Blip2Processor` (stage 1: `Blip2ForImageTextRetrieval`) expect.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np

from blip2_jax.convert import sizes
from blip2_jax.convert.arrays import ConvertedArrays, Part
from blip2_jax.convert.files.atomic_output import (
    ShardWriter,
    cast,
    progress,
    whole,
    write_json,
)
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.model_source import TEXT_BRANCH, ModelSource, expected_shapes
from blip2_jax.convert.tables.huggingface import RETRIEVAL_LACKS, huggingface_rules
from blip2_jax.convert.tables.name_table import Rule
from blip2_jax.convert.towers import resized_part, tied_head
from blip2_jax.data.text.tokenizers import (
    LanguageTokenizer,
    load_tokenizer,
    tokenizer_directory,
)
from blip2_jax.models.presets import Blip2Config, OPTConfig, T5Config, ViTConfig

BUFFERS = (r".*position_ids",)
IMAGE_TOKEN = "<image>"  # stands for a query in their prompts
STAGE1, STAGE2 = "Blip2ForImageTextRetrieval", "Blip2ForConditionalGeneration"


def open_huggingface(
    source: CheckpointFiles,
    config: Blip2Config | None = None,
    *,
    extra: tuple[Part, ...] = (),
) -> ModelSource:
    """A Hugging Face folder as a model, its tokenizer included.

    Args:
      source: of the folder.
      config: sizes; None reads its `config.json`.
      extra: further parts, such as a text branch.

    Raises:
      SourceError: weights and configuration do not fit, or a variant is unknown.
    """
    config = config or sizes.huggingface_sizes(source)
    arrays = ConvertedArrays([huggingface_part(source, config), *extra])
    absent = RETRIEVAL_LACKS if config.language_model is None else ()
    arrays.check(expected_shapes(config), absent, TEXT_BRANCH if extra else ())
    half = any(arrays.dtype(path).itemsize < 4 for path in arrays)
    has_words = any((source.path / name).exists() for name in _WORDS)
    words = str(source.path) if has_words else ""
    return ModelSource(
        config,
        arrays,
        "huggingface",
        absent=tuple(p for p in absent if not _has(arrays, p)),
        precision="bfloat16" if half else "float32",
        qformer_tokenizer=words if config.language_model is None else "",
        language_tokenizer=words if config.language_model else "",
    )


def huggingface_part(source: CheckpointFiles, config: Blip2Config) -> Part:
    """The folder with its table; positions take the image size of `config`."""
    rules = tied_head(huggingface_rules(config), source)
    return resized_part(source, rules, config.vision, BUFFERS)


_WORDS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")


def _has(arrays: ConvertedArrays, pattern: str) -> bool:
    return any(re.fullmatch(pattern, path) for path in arrays)


def write_huggingface(
    model: ModelSource, output: pathlib.Path, dtype: str | None = None
) -> list[str]:
    """Write a folder; it appears when it is complete.

    Args:
      dtype: of all floating arrays; None keeps each one's own.

    Returns:
      Lines for the user: what has no place there, what had to be added.

    Raises:
      SourceError: transformers has no such model.
      FileExistsError: the output is there already.
    """
    if model.question_in_qformer:
        raise SourceError("transformers has no Q-Former that reads questions")
    try:
        rules = huggingface_rules(model.config)
    except ValueError as error:
        raise SourceError(str(error)) from error
    words = _Words(model)
    with whole(output) as place:
        place.mkdir(parents=True)
        stored = _write_weights(model, rules, words.rows, place, dtype)
        config = _config(model, words, stored)
        config.save_pretrained(place)
        if model.stage == 2:
            write_json(place / "generation_config.json", _generation(model, words))
        words.save(place, model)
    return _report(model, rules, words)


def _write_weights(
    model: ModelSource,
    rules: list[Rule],
    rows: int,
    place: pathlib.Path,
    dtype: str | None,
) -> str:
    """Write all arrays, rule by rule; returns the widest dtype among them.

    transformers brings everything to one dtype when it loads: none is rounded then.
    """
    writer, found = ShardWriter(place), set[np.dtype]()
    for rule in progress(rules, "converting"):
        ours = {path: model.arrays[path] for path in rule.paths()}
        aliases = set(rule.aliases)  # transformers ties them itself
        for name, theirs in rule.to_source(ours).items():
            if name in aliases:
                continue
            array = np.asarray(theirs)
            if name.endswith(_WORD_TABLES):
                array = _with_rows(array, rows)
            array = cast(array, dtype)
            writer.add(name, array)
            found.add(array.dtype)
    writer.close()
    if len(found) == 1:
        return found.pop().name
    return "float32"  # float16 and bfloat16 have no other in common


_WORD_TABLES = (
    "decoder.embed_tokens.weight",
    "language_model.shared.weight",
    "language_model.lm_head.weight",
)


def _with_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Zeros for words that the model's table has no row for."""
    more = np.zeros((max(rows - len(array), 0), *array.shape[1:]), array.dtype)
    return np.concatenate([array, more]) if len(more) else array


class _Words:
    """The tokenizer with `<image>`, and the rows that the model's table then needs."""

    def __init__(self, model: ModelSource) -> None:
        stage2 = model.stage == 2
        spec = model.language_tokenizer if stage2 else model.qformer_tokenizer
        if not spec:
            which = "language" if stage2 else "Q-Former"
            raise SourceError(
                f"a Hugging Face folder has a tokenizer, and none of the {which} is "
                f"known (--{'language' if stage2 else 'qformer'}_tokenizer)"
            )
        from transformers import AutoTokenizer

        ours = load_tokenizer(spec, language_model=stage2)
        decoder_only = isinstance(model.config.language_model, OPTConfig)
        self.tokenizer = AutoTokenizer.from_pretrained(
            str(tokenizer_directory(spec)),
            padding_side="left" if decoder_only else "right",
        )
        self.ours = ours
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

    def save(self, place: pathlib.Path, model: ModelSource) -> None:
        """Tokenizer and processor."""
        from transformers import Blip2Processor
        from transformers.models.blip import BlipImageProcessorPil

        vision = model.config.vision
        assert isinstance(vision, ViTConfig)
        size = {"height": vision.image_size, "width": vision.image_size}
        queries = model.config.qformer.num_queries if model.stage == 2 else None
        processor = Blip2Processor(
            BlipImageProcessorPil(size=size), self.tokenizer, num_query_tokens=queries
        )
        processor.save_pretrained(place)
        _use_older_names(place)


# Names of transformers 5, and what earlier versions know the same by.
_OLDER_NAMES = {
    "processor_config.json": ("BlipImageProcessorPil", "BlipImageProcessor"),
    "tokenizer_config.json": ("TokenizersBackend", "PreTrainedTokenizerFast"),
}


def _use_older_names(place: pathlib.Path) -> None:
    for name, (new, old) in _OLDER_NAMES.items():
        file = place / name
        file.write_text(file.read_text().replace(new, old))


def _config(model: ModelSource, words: _Words, dtype: str) -> Any:
    """Their `Blip2Config` of a model."""
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
            "hidden_dropout_prob": qformer.dropout,
            "attention_probs_dropout_prob": qformer.dropout,
            "max_position_embeddings": qformer.max_positions,
            "layer_norm_eps": qformer.layer_norm_eps,
            "cross_attention_frequency": qformer.cross_attention_every,
            "encoder_hidden_size": vision.width,
            "use_qformer_text_input": not stage2,
        },
        text_config=_text_config(model, words) if stage2 else None,
        num_query_tokens=qformer.num_queries,
        image_text_hidden_size=qformer.projection_dim,
        image_token_index=words.image_id,
        architectures=[STAGE2 if stage2 else STAGE1],
        dtype=dtype,
    )


def _text_config(model: ModelSource, words: _Words) -> dict[str, Any]:
    """Their configuration of the language model."""
    ours = model.config.language_model
    assert isinstance(words.ours, LanguageTokenizer)
    if isinstance(ours, OPTConfig):
        return {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "vocab_size": words.rows,
            "hidden_size": ours.width,
            "num_hidden_layers": ours.depth,
            "num_attention_heads": ours.heads,
            "ffn_dim": ours.mlp_dim,
            "max_position_embeddings": ours.max_positions,
            "word_embed_proj_dim": ours.embedding_width,
            "do_layer_norm_before": ours.pre_norm,
            "dropout": ours.dropout,
            "activation_function": "relu",
            "pad_token_id": ours.pad_id,
            "bos_token_id": ours.bos_id,
            "eos_token_id": words.ours.end_id,
            "prefix": "</s>",
        }
    assert isinstance(ours, T5Config)
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": words.rows,
        "d_model": ours.width,
        "num_layers": ours.depth,
        "num_decoder_layers": ours.decoder_depth or ours.depth,
        "num_heads": ours.heads,
        "d_ff": ours.mlp_dim,
        "d_kv": ours.head_width,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": ours.activation,
        "relative_attention_num_buckets": ours.relative_buckets,
        "relative_attention_max_distance": ours.relative_max_distance,
        "layer_norm_epsilon": ours.layer_norm_eps,
        "dropout_rate": ours.dropout,
        "tie_word_embeddings": False,
        "pad_token_id": ours.pad_id,
        "bos_token_id": ours.eos_id,
        "eos_token_id": ours.eos_id,
        "decoder_start_token_id": ours.decoder_start_id,
        "is_encoder_decoder": True,
    }


def _generation(model: ModelSource, words: _Words) -> dict[str, Any]:
    """Their `generation_config.json`."""
    told = _text_config(model, words)
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    settings = {name: told[name] for name in names if name in told}
    if words.added:  # its logit is 0, others' may be less
        settings["suppress_tokens"] = [words.image_id]
    return settings


def _report(model: ModelSource, rules: list[Rule], words: _Words) -> list[str]:
    written = {path for rule in rules for path in rule.paths()}
    left = [path for path in model.arrays if path not in written]
    lines = []
    if left:
        theirs = STAGE2 if model.stage == 2 else STAGE1
        names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        lines.append(f"{len(left)} arrays have no place in {theirs}: {names}")
    if words.added:
        lines.append(
            f"{words.added} row added to the token table for {IMAGE_TOKEN}, which is "
            "never generated"
        )
    return lines

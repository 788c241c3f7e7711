"""Tiny models of transformers and the original, written in their file formats."""

import json
import pathlib

import numpy as np
import pytest

from blip2_jax.convert.tables.lavis import POSITION_IDS
from blip2_jax.data.text.tokenizer_files import tokenizer_directory
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.models import presets

DTYPES = ("float32", "float16", "bfloat16")
WIDTH = 16


def torch_and_transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.set_num_threads(1)
    return torch, transformers


def text_config(transformers, family):
    """Build a language-model config with the shapes vocabulary and `<image>`."""
    if family == "opt":
        return transformers.OPTConfig(
            vocab_size=presets.SHAPES_OPT.vocab_size + 1,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24,
            max_position_embeddings=64,
            word_embed_proj_dim=WIDTH,
            init_std=0.3,
            eos_token_id=load_tokenizer("shapes:opt", language_model=True).end_id,
        )
    if family == "llama":
        return transformers.LlamaConfig(
            vocab_size=presets.SHAPES_OPT.vocab_size + 1,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
            initializer_range=0.3,
            pad_token_id=1,
            bos_token_id=2,
            eos_token_id=load_tokenizer("shapes:opt", language_model=True).end_id,
        )
    return transformers.T5Config(
        vocab_size=presets.SHAPES_T5.vocab_size + 1,
        d_model=WIDTH,
        d_kv=8,
        d_ff=24,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        feed_forward_proj="gated-gelu",
        dense_act_fn="gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        bos_token_id=1,
        initializer_factor=2.0,
    )


def huggingface_config(transformers, family):
    """Build the config of "opt", "t5", "llama" (stage 2) or "retrieval" (stage 1)."""
    retrieval = family == "retrieval"
    more = {} if retrieval else {"text_config": text_config(transformers, family)}
    image = {"retrieval": None, "t5": presets.SHAPES_T5}.get(family, presets.SHAPES_OPT)
    return transformers.Blip2Config(
        vision_config=dict(
            hidden_size=WIDTH,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        qformer_config=dict(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            vocab_size=presets.SHAPES_QFORMER.vocab_size,
            max_position_embeddings=32,
            encoder_hidden_size=WIDTH,
            use_qformer_text_input=retrieval,
        ),
        num_query_tokens=4,
        image_text_hidden_size=8,
        image_token_index=image.vocab_size if image else None,
        **more,
    )


def huggingface_model(family, key_bias=False, seed=0):
    torch, transformers = torch_and_transformers()
    torch.manual_seed(seed)
    kind = (
        transformers.Blip2ForImageTextRetrieval
        if family == "retrieval"
        else transformers.Blip2ForConditionalGeneration
    )
    model = kind(huggingface_config(transformers, family)).eval()
    for name, parameter in model.named_parameters():
        if not name.startswith("language_model."):
            torch.nn.init.normal_(parameter, std=0.3)
        if name.endswith("self_attn.qkv.bias") and not key_bias:
            parameter.data[WIDTH : 2 * WIDTH] = 0  # as in the released models
    if family == "t5":  # an untied head, as in v1.1 files
        head = model.language_model.lm_head
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape) / 4)
    return model


def write_huggingface(path, family, dtype="float32", shard="1GB", **kwargs):
    """Write a directory with `save_pretrained` and a tokenizer of the shapes world."""
    torch, _ = torch_and_transformers()
    model = huggingface_model(family, **kwargs).to(getattr(torch, dtype))
    model.save_pretrained(path, max_shard_size=shard)
    spec = {"t5": "shapes:t5", "retrieval": "shapes:bert"}.get(family, "shapes:opt")
    for file in pathlib.Path(tokenizer_directory(spec)).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return model


def write_pickle(path, arrays, wrapper="model"):
    """Write numpy arrays to a `.pth` file."""
    torch, _ = torch_and_transformers()
    tensors = {name: to_torch(torch, array) for name, array in arrays.items()}
    torch.save({wrapper: tensors} if wrapper else tensors, path)
    return path


def to_torch(torch, array):
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def cast(arrays, dtype):
    """Cast floating-point arrays to another dtype."""
    import ml_dtypes  # noqa: F401

    return {
        name: array if array.dtype.kind == "i" else array.astype(np.dtype(dtype))
        for name, array in arrays.items()
    }


def write_sizes(path, config):
    path.write_text(json.dumps(presets.to_plain(config)))
    return str(path)


def bits(array):
    """Return an array's shape, dtype and raw bytes."""
    array = np.atleast_1d(np.ascontiguousarray(array))
    return array.shape, array.dtype.name, array.view(np.uint8).tobytes()


def assert_same(actual, expected, ignore=(POSITION_IDS,)):
    """Check for equal names and equal bits."""
    assert set(actual) - set(ignore) == set(expected) - set(ignore)
    for name in set(actual) - set(ignore):
        assert bits(actual[name]) == bits(expected[name]), name

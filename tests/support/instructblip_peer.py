"""A tiny InstructBLIP of transformers, written in its file format."""

import pathlib

from blip2_jax.data.text.tokenizer_files import tokenizer_directory
from blip2_jax.models import presets
from tests.support import peer_models as peers
from tests.support import vicuna_tokenizer

IMAGE_SIZE = 28
FAMILIES = ("t5", "opt", "vicuna")


def vicuna_config(transformers):
    """Build the config of a language model of odd sizes.

    As in the released folders, its BOS is not that of the tokenizer, and its table has
    rows for [PAD] and `<image>`.
    """
    return transformers.LlamaConfig(
        vocab_size=vicuna_tokenizer.ROWS + 2,
        hidden_size=18,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=26,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=-1,
        bos_token_id=1,
        eos_token_id=2,
    )


def instructblip_config(transformers, family):
    """Build the config of a tiny InstructBLIP with "t5", "opt" or "vicuna"."""
    text = (
        vicuna_config(transformers)
        if family == "vicuna"
        else peers.text_config(transformers, family)
    )
    return transformers.InstructBlipConfig(
        vision_config=dict(
            hidden_size=peers.WIDTH,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=IMAGE_SIZE,
            patch_size=14,
        ),
        qformer_config=dict(
            hidden_size=peers.WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            vocab_size=presets.SHAPES_QFORMER.vocab_size,
            max_position_embeddings=32,
            encoder_hidden_size=peers.WIDTH,
        ),
        text_config=text,
        num_query_tokens=4,
        image_token_index=text.vocab_size - 1,
    )


def instructblip_model(family="t5", seed=0):
    torch, transformers = peers.torch_and_transformers()
    torch.manual_seed(seed)
    config = instructblip_config(transformers, family)
    model = transformers.InstructBlipForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if not name.startswith("language_model."):
            torch.nn.init.normal_(parameter, std=0.3)
        if name.endswith("self_attn.qkv.bias"):
            parameter.data[peers.WIDTH : 2 * peers.WIDTH] = 0
    if family == "t5":  # an untied head, as in v1.1 files
        head = model.language_model.lm_head
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape) / 4)
    return model


def write_instructblip(path, family="t5", dtype="float32"):
    """Write a folder with `save_pretrained` and both tokenizers."""
    torch, _ = peers.torch_and_transformers()
    model = instructblip_model(family).to(getattr(torch, dtype))
    model.save_pretrained(path)
    tokenizers = {"shapes:bert": path / "qformer_tokenizer"}
    if family == "vicuna":
        vicuna_tokenizer.write_tokenizer(path, instructed=True, image=True)
    else:
        tokenizers[f"shapes:{family}"] = path
    for spec, folder in tokenizers.items():
        folder.mkdir(exist_ok=True)
        for file in pathlib.Path(tokenizer_directory(spec)).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return model

"""A tiny InstructBLIP of transformers, written in its file format."""

import pathlib

from blip2_jax.data.text.tokenizer_files import tokenizer_directory
from blip2_jax.models import presets
from tests.support import peer_models as peers

IMAGE_SIZE = 28


def instructblip_config(transformers, family):
    """Build the config of a tiny InstructBLIP with "t5" or "opt"."""
    blip2 = peers.huggingface_config(transformers, family)
    qformer = blip2.qformer_config
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
            num_hidden_layers=qformer.num_hidden_layers,
            num_attention_heads=qformer.num_attention_heads,
            intermediate_size=24,
            vocab_size=presets.SHAPES_QFORMER.vocab_size,
            max_position_embeddings=32,
            encoder_hidden_size=peers.WIDTH,
        ),
        text_config=peers.text_config(transformers, family),
        num_query_tokens=4,
        image_token_index=blip2.image_token_index,
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
    for spec, folder in (
        (f"shapes:{family}", path),
        ("shapes:bert", path / "qformer_tokenizer"),
    ):
        folder.mkdir(exist_ok=True)
        for file in pathlib.Path(tokenizer_directory(spec)).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return model

"""Tiny image encoders of transformers and their folders, with random weights."""

import torch
import transformers

PATCH = 6
_SIZES = dict(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    patch_size=PATCH,
    layer_norm_eps=1e-5,
)
# 27 pixels: as so400m's 384, no multiple of the patch size.
_SIGLIP = dict(**_SIZES, intermediate_size=40, image_size=27)
_DINOV2 = dict(**_SIZES, mlp_ratio=3, image_size=5 * PATCH)


def _siglip():
    text = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    text |= dict(num_attention_heads=1, vocab_size=9, max_position_embeddings=7)
    return transformers.SiglipConfig(vision_config=dict(_SIGLIP), text_config=text)


CONFIGS = {
    "siglip": _siglip,
    "siglip_vision": lambda: transformers.SiglipVisionConfig(**_SIGLIP),
    "dinov2": lambda: transformers.Dinov2Config(**_DINOV2),
    "dinov2_swiglu": lambda: transformers.Dinov2Config(**_DINOV2, use_swiglu_ffn=True),
    "dinov2_registers": lambda: transformers.Dinov2WithRegistersConfig(
        **_DINOV2, num_register_tokens=3
    ),
}


def encoder(name):
    """Return a model whose biases, norms and scales are random too."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(CONFIGS[name]()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def write_encoder(folder, name):
    """Write the folder of a model; return the model."""
    model = encoder(name)
    model.save_pretrained(folder)
    return model


def hidden_states(model, images):
    """Return the output of the last block, and that of the final norm.

    Args:
      model: from `encoder`.
      images: normalised, [B, R, R, 3].
    """
    vision, more = getattr(model, "vision_model", model), {}
    if hasattr(vision, "post_layernorm"):
        more, layers = {"interpolate_pos_encoding": True}, vision.encoder.layers
    else:
        layers = vision.encoder.layer
    blocks = []
    hook = layers[-1].register_forward_hook(lambda *call: blocks.append(call[2]))
    with torch.no_grad():
        normed = vision(torch.tensor(images.transpose(0, 3, 1, 2)), **more)
    hook.remove()
    (block,) = blocks
    block = block[0] if isinstance(block, tuple) else block
    return block.numpy(), normed.last_hidden_state.numpy()

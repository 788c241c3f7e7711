"""Tiny captioners and CLIPs of transformers, in the file formats of their authors."""

import json

import numpy as np

from tests.support.peer_models import torch_and_transformers

# Special tokens have BERT's ids.
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
PLAIN = ("a", "picture", "of", "photo", "dog", "red", "two", "cats", "on", "##s")
WORDS = [SPECIAL.get(i, f"w{i}") for i in range(104)] + list(PLAIN)
WORDS += [f"w{i}" for i in range(len(WORDS), 118)]
BLIP_VOCAB = len(WORDS) + 2  # [DEC] and [ENC]
# Letters of CLIP's alphabet, inside and at the end of a word.
LETTERS = [chr(c) for c in range(33, 127)]
CLIP_WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
CLIP_WORDS += ["<|startoftext|>", "<|endoftext|>"]


def write_bert(path):
    """Write a BERT tokenizer without [DEC] and [ENC], as the released folders have."""
    path.mkdir(exist_ok=True, parents=True)
    (path / "vocab.txt").write_text("\n".join(WORDS))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def write_clip_tokenizer(path):
    """Write a CLIP tokenizer that knows letters only."""
    path.mkdir(exist_ok=True, parents=True)
    ids = {word: index for index, word in enumerate(CLIP_WORDS)}
    (path / "vocab.json").write_text(json.dumps(ids))
    (path / "merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def blip_config(transformers, width=32, heads=2, eps=1e-5, image_size=48, **text):
    vision = dict(
        hidden_size=width + 32,  # not the text's, as in BLIP-large
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=(width + 32) * heads // width,
        image_size=image_size,
        patch_size=16,
        layer_norm_eps=eps,
    )
    text = dict(
        vocab_size=BLIP_VOCAB,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=heads,
        max_position_embeddings=40,
        bos_token_id=BLIP_VOCAB - 2,
        **text,
    )
    return transformers.BlipConfig(vision_config=vision, text_config=text)


def blip_model(seed=0, **sizes):
    """Return a `BlipForConditionalGeneration` with random weights."""
    torch, transformers = torch_and_transformers()
    torch.manual_seed(seed)
    config = blip_config(transformers, **sizes)
    model = transformers.BlipForConditionalGeneration(config).eval()
    return randomize(torch, model)


def randomize(torch, model):
    """Draw all parameters so that no block is close to the identity."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 0:
                continue
            is_scale = "orm" in name and name.endswith("weight")
            parameter.normal_(mean=1.0 if is_scale else 0.0, std=0.1)
    return model


def write_blip(path, **sizes):
    """Write a folder of a captioner with its tokenizer; return the model."""
    model = blip_model(**sizes)
    model.save_pretrained(path)
    write_bert(path)
    return model


# (transformers', the authors'): replaced in this order in names of the image encoder.
AUTHORS = (
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
    ("vision_model.encoder.layers.", "visual_encoder.blocks."),
    ("vision_model.post_layernorm.", "visual_encoder.norm."),
    (".self_attn.projection.", ".attn.proj."),
    (".self_attn.", ".attn."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
)


def write_authors_file(path, model):
    """Write the state of a captioner under the authors' names."""
    torch, _ = torch_and_transformers()
    state = {}
    for name, tensor in model.state_dict().items():
        for theirs, authors in AUTHORS if name.startswith("vision_model.") else ():
            name = name.replace(theirs, authors)
        state[name] = tensor
    positions = torch.arange(model.config.text_config.max_position_embeddings)[None]
    state["text_decoder.bert.embeddings.position_ids"] = positions
    torch.save({"model": state, "epoch": 5, "config": {"vit": "large"}}, path)
    return path


def clip_config(transformers, end_id=2, activation="quick_gelu"):
    vision = dict(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        hidden_act=activation,
    )
    text = dict(
        vocab_size=len(CLIP_WORDS),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=20,
        hidden_act=activation,
        bos_token_id=len(CLIP_WORDS) - 2,
        eos_token_id=end_id,
    )
    return transformers.CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=16
    )


def write_clip(path, **settings):
    """Write a folder of a CLIP with its tokenizer; return the model."""
    torch, transformers = torch_and_transformers()
    torch.manual_seed(0)
    model = transformers.CLIPModel(clip_config(transformers, **settings)).eval()
    randomize(torch, model).save_pretrained(path)
    write_clip_tokenizer(path)
    return model


def pictures(count, size=(40, 52)):
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, *size, 3), dtype=np.uint8))

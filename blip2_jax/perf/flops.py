"""Model FLOPs of one image by formula: matmuls only, two FLOPs per multiply-add.

Functions return the terms of one forward pass by name, and `training_step` sums them.
Attention counts in full, not by half if it is causal. `dot_count` counts the same terms
in the program, and tests compare both exactly. In formulas d is the width, m the
feed-forward width, s the number of tokens and L the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable

from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import (
    FeaturesConfig,
    LlamaConfig,
    OPTConfig,
    ProjectorConfig,
    QFormerConfig,
    T5Config,
    ViTConfig,
)

Terms = dict[str, int]


def vit(config: ViTConfig) -> int:
    """Count the image encoder's FLOPs for one image of s tokens, p of them patches.

    L (2s (4d^2 + 2dm) + 4 s^2 d) + 2 p 3 patch^2 d; with a gated feed-forward 3dm.
    """
    d, s = config.width, config.num_tokens
    matrices = 3 if config.gated_mlp else 2
    block = 2 * s * (4 * d * d + matrices * d * config.mlp_dim) + 4 * s * s * d
    patches = 2 * config.num_patches * 3 * config.patch_size**2 * d
    return config.depth * block + patches


def cross_layers(config: QFormerConfig) -> int:
    """Return the number of Q-Former blocks with cross-attention."""
    return -(-config.depth // config.cross_attention_every)


def cross_attention_kv(config: QFormerConfig, tokens: int, width: int) -> int:
    """Count the FLOPs of one image's cross-attention keys and values, all blocks."""
    return cross_layers(config) * 2 * 2 * tokens * width * config.width


def qformer(
    config: QFormerConfig, queries: int, text: int, image_tokens: int, past: int = 0
) -> int:
    """Count the FLOPs of one Q-Former pass without the image's keys and values.

    Args:
      config: sizes of the Q-Former.
      queries: number of queries.
      text: number of text tokens.
      image_tokens: number of image tokens that the queries attend to.
      past: number of cached keys that all positions attend to as well.
    """
    d, n = config.width, queries + text
    block = 8 * n * d * d + 4 * n * (n + past) * d + 4 * n * d * config.mlp_dim
    cross_attention = 4 * queries * d * d + 4 * queries * image_tokens * d
    return config.depth * block + (
        cross_layers(config) * cross_attention if queries else 0
    )


def unread_positions(config: QFormerConfig, rows: int, tokens: int) -> int:
    """Count the FLOPs that the last block skips for text tokens with unused outputs.

    rows (4 d^2 + 4 tokens d + 4 d m): the attention queries and output projection of
    `rows` tokens, their attention to all `tokens` and their feed-forward. Their keys
    and values are still computed.
    """
    d = config.width
    return rows * (4 * d * d + 4 * tokens * d + 4 * d * config.mlp_dim)


def image_encoder(config: Blip2Config) -> tuple[int, int, int]:
    """Return the image encoder's FLOPs, number of tokens and width."""
    vision = config.vision
    flops = 0 if isinstance(vision, FeaturesConfig) else vit(vision)
    return flops, vision.num_tokens, vision.width


def stage1(
    config: Blip2Config, text: int, share_kv: bool = True, skip_unread: bool = True
) -> Terms:
    """Count the forward terms of stage 1.

    Args:
      config: sizes of the model.
      text: number of tokens of a caption.
      share_kv: compute cross-attention keys and values once per image; False: in each
        of the four passes, as the original does.
      skip_unread: skip outputs of the last block that no loss uses
        (`unread_positions`): ITC uses only the text's [CLS], ITM only the queries, ITG
        no logits at the last position. False: compute all, as the original does.
    """
    flops, tokens, width = image_encoder(config)
    q = config.qformer
    queries, d, c = q.num_queries, q.width, q.projection_dim
    itc_unread = unread_positions(q, text - 1, text) if skip_unread else 0
    itm_unread = unread_positions(q, text, queries + text) if skip_unread else 0
    predicted = text - 1 if skip_unread else text
    return {
        "vit": flops,
        "kv": cross_attention_kv(q, tokens, width) * (1 if share_kv else 4),
        "query": qformer(q, queries, 0, tokens),
        "text": qformer(q, 0, text, 0) - itc_unread,
        "itm": 3 * (qformer(q, queries, text, tokens) - itm_unread),
        "itg": qformer(q, 0, text, 0, past=queries),
        "itg_head": 2 * predicted * d * (d + q.vocab_size),
        "projections": 2 * queries * d * c + 2 * d * c,
    }


def stage2(config: Blip2Config, text: int, target: int = 0, question: int = 0) -> Terms:
    """Count the forward terms of stage 2.

    Args:
      config: sizes of the model.
      text: number of text tokens behind the queries (in the encoder, if there is one).
      target: number of tokens of the decoder; 0 for a decoder-only model.
      question: number of question tokens that the Q-Former gets with its queries.

    Raises:
      ValueError: the configuration has no language model.
    """
    flops, tokens, width = image_encoder(config)
    queries, language = config.num_visual_tokens, config.language_model
    if language is None:
        raise ValueError("stage 2 needs a configuration with a language model")
    predicted = target if language.is_encoder_decoder else text
    model = LANGUAGE_MODELS[language.family](language, queries + text, predicted)
    projection = 2 * queries * config.visual_width * language.embedding_width
    if config.projector is not None:
        bridge = {"projector": projector(config.projector, width)}
    else:
        q = config.qformer
        qformer_pass = qformer(q, queries, question, tokens)
        unread = unread_positions(q, question, queries + question)
        bridge = {
            "kv": cross_attention_kv(q, tokens, width),
            "query": qformer_pass - unread,
        }
    return {"vit": flops, **bridge, "projection": projection, **model}


def projector(config: ProjectorConfig, width: int) -> int:
    """Count the FLOPs of a projector's hidden layer over patches of a width."""
    if config.join == "concatenate":
        return 0
    return 2 * config.num_tokens * width * config.hidden_width


def opt(config: OPTConfig, tokens: int, predicted: int) -> Terms:
    """Count the terms of a decoder-only model over `tokens` positions.

    `language_attention` are the matmuls of attention queries with keys and of attention
    weights with values; `language_weights` are all other matmuls of the blocks.

    Args:
      config: sizes of the model.
      tokens: number of positions.
      predicted: number of positions with logits.
    """
    d, e, n = config.width, config.embedding_width, tokens
    projections = 2 * (n + predicted) * d * e if e != d else 0
    weights = config.depth * 2 * n * (4 * d * d + 2 * d * config.mlp_dim)
    return {
        "language_weights": weights + projections,
        "language_attention": config.depth * 4 * n * n * d,
        "language_head": 2 * predicted * e * config.vocab_size,
    }


def llama(config: LlamaConfig, tokens: int, predicted: int) -> Terms:
    """Count the terms (see `opt`) of a model whose heads share keys and values."""
    d, n, inner = config.width, tokens, config.heads * config.head_width
    attention = 2 * d * (inner + config.kv_heads * config.head_width)
    return {
        "language_weights": config.depth * 2 * n * (attention + 3 * d * config.mlp_dim),
        "language_attention": config.depth * 4 * n * n * inner,
        "language_head": 2 * predicted * d * config.vocab_size,
    }


def t5(config: T5Config, tokens: int, target: int) -> Terms:
    """Count the terms (see `opt`) of an encoder-decoder over `tokens` and `target`."""
    d, inner, n = config.width, config.heads * config.head_width, tokens
    gated = 3 * d * config.mlp_dim
    decoders = config.decoder_depth or config.depth
    encoder = config.depth * 2 * n * (4 * d * inner + gated)
    decoder = decoders * (2 * target * (6 * d * inner + gated) + 2 * n * 2 * d * inner)
    scores = config.depth * n * n + decoders * target * (target + n)
    return {
        "language_weights": encoder + decoder,
        "language_attention": 4 * inner * scores,
        "language_head": 2 * target * d * config.vocab_size,
    }


# Formulas by family; arguments are the sizes, the positions of queries and text, and
# the positions with logits.
LANGUAGE_MODELS: dict[str, Callable[..., Terms]] = {
    "opt": opt,
    "t5": t5,
    "llama": llama,
    "phi3": llama,
}


def training_step(
    terms: Terms, trained_vision: bool = False, fold_norm: bool = True
) -> int:
    """Sum the FLOPs of a training step for one image with a frozen language model.

    A frozen image encoder runs forward only (x1). A frozen language model also needs
    gradients of its inputs (x2). Trainable parts also need gradients of their weights
    (x3). Cross-attention keys and values need no gradient of the image features (x2) if
    the encoder is frozen and the norm between them is folded into their weights
    (`nn/folded_norm.py`).

    Args:
      terms: FLOPs of the forward pass by name.
      trained_vision: the image encoder is trainable.
      fold_norm: the norm is folded; False: keys and values count x3 (the original).
    """
    image_gradient = trained_vision or not fold_norm
    times = {"vit": 3 if trained_vision else 1, "kv": 3 if image_gradient else 2}
    times |= {"language_weights": 2, "language_attention": 2, "language_head": 2}
    return sum(times.get(name, 3) * flops for name, flops in terms.items())


def mfu_numerator(
    config: Blip2Config,
    text: int,
    target: int = 0,
    question: int = 0,
    trained_vision: bool = False,
) -> int:
    """Count the FLOPs per image of the original algorithm, the numerator of MFU.

    The original computes an image's keys and values four times in stage 1, computes
    unused outputs (761 GFLOPs at ViT-g and 32 text tokens), and takes gradients of the
    image tokens in both stages. Work that this package skips shows as higher MFU.
    """
    if config.language_model is None:
        terms = stage1(config, text, share_kv=False, skip_unread=False)
    else:
        terms = stage2(config, text, target, question)
    return training_step(terms, trained_vision, fold_norm=False)

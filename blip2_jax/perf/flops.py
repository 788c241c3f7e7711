"""Model FLOPs of one image: matrix products alone, two per multiply-add.

Each function gives terms by name for one forward pass; `training_step` puts them together.
Attention is counted in full, not halved where it is causal. `dot_count` counts the
same terms in the program; tests compare the two exactly.
"""

from __future__ import annotations

from blip2_jax.models.presets import (
    Blip2Config,
    FeaturesConfig,
    OPTConfig,
    QFormerConfig,
    T5Config,
    ViTConfig,
)

Terms = dict[str, int]


def vit(config: ViTConfig) -> int:
    """One image through the tower: s = patches + 1 tokens.

    L (2s (4d^2 + 2dm) + 4 s^2 d) + 2 (s - 1) 3 patch^2 d
    """
    d, s = config.width, config.num_tokens
    block = 2 * s * (4 * d * d + 2 * d * config.mlp_dim) + 4 * s * s * d
    patches = 2 * config.num_patches * 3 * config.patch_size**2 * d
    return config.depth * block + patches


def cross_layers(config: QFormerConfig) -> int:
    """Number of blocks that read the image."""
    return -(-config.depth // config.cross_attention_every)


def cross_attention_kv(config: QFormerConfig, tokens: int, width: int) -> int:
    """Cross-attention keys and values of one image, all blocks."""
    return cross_layers(config) * 2 * 2 * tokens * width * config.width


def qformer(
    config: QFormerConfig, queries: int, text: int, image_tokens: int, past: int = 0
) -> int:
    """One pass, without the image's keys and values.

    Args:
      queries, text: tokens that go in.
      image_tokens: that the queries read.
      past: cached keys and values that are attended to as well.
    """
    d, n = config.width, queries + text
    block = 8 * n * d * d + 4 * n * (n + past) * d + 4 * n * d * config.mlp_dim
    reading = 4 * queries * d * d + 4 * queries * image_tokens * d
    return config.depth * block + (cross_layers(config) * reading if queries else 0)


def unread_positions(config: QFormerConfig, rows: int, tokens: int) -> int:
    """What the last block leaves out for `rows` text tokens whose output nobody reads.

    rows (4 d^2 + 4 tokens d + 4 d m): their attention queries and output projection,
    their attention to all `tokens`, their feed-forward. Keys and values stay.
    """
    d = config.width
    return rows * (4 * d * d + 4 * tokens * d + 4 * d * config.mlp_dim)


def image_encoder(config: Blip2Config) -> tuple[int, int, int]:
    """FLOPs of the tower, its number of tokens, its width."""
    vision = config.vision
    flops = 0 if isinstance(vision, FeaturesConfig) else vit(vision)
    return flops, vision.num_tokens, vision.width


def stage1(
    config: Blip2Config, text: int, share_kv: bool = True, skip_unread: bool = True
) -> Terms:
    """Forward terms of stage 1 for captions of `text` tokens.

    Args:
      share_kv: keys and values once per image; False: for each of four passes, as in
        the original.
      skip_unread: ITC reads the [CLS] of the text alone, ITM the queries alone, so
        the last block computes nothing else (`unread_positions`), and ITG has no logits at the
        last place; False: all, as the original.
    """
    flops, tokens, width = image_encoder(config)
    q = config.qformer
    queries, d, c = q.num_queries, q.width, q.projection_dim
    itc_unread = unread_positions(q, text - 1, text) if skip_unread else 0
    itm_unread = unread_positions(q, text, queries + text) if skip_unread else 0
    predicting = text - 1 if skip_unread else text
    return {
        "vit": flops,
        "kv": cross_attention_kv(q, tokens, width) * (1 if share_kv else 4),
        "query": qformer(q, queries, 0, tokens),
        "text": qformer(q, 0, text, 0) - itc_unread,
        "itm": 3 * (qformer(q, queries, text, tokens) - itm_unread),
        "itg": qformer(q, 0, text, 0, past=queries),
        "itg_head": 2 * predicting * d * (d + q.vocab_size),
        "projections": 2 * queries * d * c + 2 * d * c,
    }


def stage2(config: Blip2Config, text: int, target: int = 0, question: int = 0) -> Terms:
    """Forward terms of stage 2.

    Args:
      text: tokens beside the queries (of the encoder, in an encoder-decoder).
      target: the decoder's tokens; 0 for a decoder-only model.
      question: tokens that the Q-Former reads beside its queries.

    Raises:
      ValueError: the configuration has no language model.
    """
    flops, tokens, width = image_encoder(config)
    q, language = config.qformer, config.language_model
    if language is None:
        raise ValueError("stage 2 needs a language model")
    model = (
        opt(language, q.num_queries + text, text)
        if isinstance(language, OPTConfig)
        else t5(language, q.num_queries + text, target)
    )
    reading = qformer(q, q.num_queries, question, tokens)
    return {
        "vit": flops,
        "kv": cross_attention_kv(q, tokens, width),
        "query": reading - unread_positions(q, question, q.num_queries + question),
        "projection": 2 * q.num_queries * q.width * language.embedding_width,
        **model,
    }


def opt(config: OPTConfig, tokens: int, predicted: int) -> Terms:
    """A decoder-only model over `tokens`, with logits at `predicted` of them.

    `language_attention` is the products of queries with keys and of their weights
    with values; `language_weights` is everything else in the blocks.
    """
    d, e, n = config.width, config.embedding_width, tokens
    in_and_out = 2 * (n + predicted) * d * e if e != d else 0
    weights = config.depth * 2 * n * (4 * d * d + 2 * d * config.mlp_dim)
    return {
        "language_weights": weights + in_and_out,
        "language_attention": config.depth * 4 * n * n * d,
        "language_head": 2 * predicted * e * config.vocab_size,
    }


def t5(config: T5Config, tokens: int, target: int) -> Terms:
    """An encoder over `tokens` and a decoder over `target`; terms as in `opt`."""
    d, inner, n = config.width, config.heads * config.head_width, tokens
    gated = 3 * d * config.mlp_dim
    decoders = config.decoder_depth or config.depth
    encoder = config.depth * 2 * n * (4 * d * inner + gated)
    decoder = decoders * (2 * target * (6 * d * inner + gated) + 2 * n * 2 * d * inner)
    return {
        "language_weights": encoder + decoder,
        "language_attention": 4
        * inner
        * (config.depth * n * n + decoders * target * (target + n)),
        "language_head": 2 * target * d * config.vocab_size,
    }


def training_step(
    terms: Terms, trained_vision: bool = False, fold_norm: bool = True
) -> int:
    """FLOPs of a training step for one image, with a frozen language model.

    A frozen image tower runs forward (x1). A language model runs forward and backward
    to its inputs (x2). What is trained also gets the gradient of its weights (x3). An
    image's keys and values have no gradient to the image (x2) where the tower is
    frozen and the norm between is folded into their weights (`models/folded_norm.py`);
    `fold_norm` False: x3, as the original.
    """
    to_image = trained_vision or not fold_norm
    times = {"vit": 3 if trained_vision else 1, "kv": 3 if to_image else 2}
    times |= {"language_weights": 2, "language_attention": 2, "language_head": 2}
    return sum(times.get(name, 3) * flops for name, flops in terms.items())


def mfu_numerator(
    config: Blip2Config,
    text: int,
    target: int = 0,
    question: int = 0,
    trained_vision: bool = False,
) -> int:
    """FLOPs an image that MFU is measured by: the original algorithm's.

    In stage 1 it projects an image's keys and values four times and computes what
    nobody reads (761 GF at ViT-g and 32 text tokens), in both stages it takes gradients
    back to the image's tokens; less work shows as speed.
    """
    if config.language_model is None:
        terms = stage1(config, text, share_kv=False, skip_unread=False)
    else:
        terms = stage2(config, text, target, question)
    return training_step(terms, trained_vision, fold_norm=False)

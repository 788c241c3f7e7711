"""Settings of transformers' `BertConfig`, of which the Q-Former takes the sizes."""

from __future__ import annotations

from blip2_jax.convert.tables.huggingface_settings import Settings

_TOKENIZER = "the tokenizer's counts"
_POOLER = "for the pooler, which the Q-Former does not contain"
BERT = Settings(
    used=(
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "hidden_dropout_prob",
        "max_position_embeddings",
        "layer_norm_eps",
    ),
    fixed={
        "add_cross_attention": (False,),
        "is_decoder": (False,),
        "model_type": ("bert",),
        "position_embedding_type": ("absolute",),
    },
    without_effect={
        "attention_probs_dropout_prob": "the Q-Former has one rate of dropout",
        "directionality": _POOLER,
        "pooler_fc_size": _POOLER,
        "pooler_num_attention_heads": _POOLER,
        "pooler_num_fc_layers": _POOLER,
        "pooler_size_per_head": _POOLER,
        "pooler_type": _POOLER,
        "type_vocab_size": "a caption has one segment",
        "tie_word_embeddings": "the Q-Former's head is its token table",
        "bos_token_id": _TOKENIZER,
        "eos_token_id": _TOKENIZER,
        "pad_token_id": _TOKENIZER,
        "decoder_start_token_id": _TOKENIZER,
        "is_encoder_decoder": "the Q-Former is one stack of blocks",
    },
)
TABLES = {"`BertConfig`": BERT}

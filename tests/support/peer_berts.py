"""Tiny random BERTs of transformers with vocabularies of several languages."""

import json

import pytest

# Cased, German and Chinese; the special tokens are not where the English BERT has them.
WORDS = [
    *("[MASK]", "[unused1]", "ein", "[PAD]", "Hund", "[UNK]", "##e", "[CLS]", "[SEP]"),
    *("hund", "über", "Über", "uber", "狗", "红", "##狗", "caf", "##é", "Haus", "##s"),
    *("rotes", "a", "the", "photo", "?", "ring", "red", "blue", "star", "circle"),
]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}


def write_tokenizer(folder, **settings):
    """Write vocab.txt, and tokenizer_config.json with settings, if there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_bert(folder, kind="BertForMaskedLM", *, pickle=False, **sizes):
    """Write the folder of a random BERT with a cased tokenizer; return the model.

    Skips the test without torch and transformers.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), **SIZES | sizes)
    model = getattr(transformers, kind)(config).eval()
    write_tokenizer(folder, do_lower_case=False)
    if pickle:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    return model

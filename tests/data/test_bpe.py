"""A learned vocabulary is a language model's tokenizer, conventions included."""

from generated import captions as captions_of
from generated import tars_spec

from blip2_jax.data.bpe import byte_level_bpe, captions, save
from blip2_jax.data.text import clean_caption, load_tokenizer


def test_learned_from_tars(tmp_path):
    spec = tars_spec(tmp_path, count=6)
    texts = list(captions([spec["paths"]]))
    assert texts[0] == clean_caption(captions_of(0)[0])
    assert texts[1] == f" {texts[0]}" and len(texts) == 24
    save(byte_level_bpe(texts, 300), tmp_path / "words")
    tokenizer = load_tokenizer(str(tmp_path / "words"), language_model=True)
    assert (tokenizer.family, tokenizer.bos_id, tokenizer.pad_id) == (
        "decoder_only", 2, 1,
    )  # fmt: skip
    assert tokenizer.vocab_size <= 300
    ids = tokenizer.encode_words("something Ünseen")
    assert tokenizer.decode(ids) == "something Ünseen"
    assert len(tokenizer.encode_words("something red")) < len("something red") / 2

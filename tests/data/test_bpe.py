"""A trained vocabulary is a language model's tokenizer with OPT's conventions."""

from blip2_jax.cli.config_options import load_config
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.text.bpe import save_tokenizer, train_byte_level_bpe, training_texts
from blip2_jax.data.text.tokenizers import clean_caption, clean_question, load_tokenizer
from tests.support.generated_data import captions as captions_of
from tests.support.generated_data import tars_spec


def test_vocabulary_of_tars(tmp_path):
    spec = tars_spec(tmp_path, count=6)
    texts = list(training_texts([spec]))
    assert texts[0] == clean_caption(captions_of(0)[0])
    assert texts[1] == f" {texts[0]}" and len(texts) == 24
    save_tokenizer(train_byte_level_bpe(texts, 300), tmp_path / "words")
    tokenizer = load_tokenizer(str(tmp_path / "words"), language_model=True)
    assert (tokenizer.family, tokenizer.bos_id, tokenizer.pad_id) == (
        "decoder_only",
        2,
        1,
    )
    assert tokenizer.vocab_size <= 300
    ids = tokenizer.encode_words("something Ünseen")
    assert tokenizer.decode(ids) == "something Ünseen"
    assert len(tokenizer.encode_words("something red")) < len("something red") / 2


def test_questions_of_a_configuration(tmp_path):
    """Questions are written with their prompt and answer."""
    file = tmp_path / "experiment.py"
    file.write_text(
        "from blip2_jax.training.train_config import default_config\n"
        "def get_config(size='4'):\n"
        "    config = default_config('language_model').unlock()\n"
        "    config.data.train = ({'kind': 'shapes', 'split': 'train', 'count': 2,\n"
        "                          'size': int(size), 'texts': 'questions'},)\n"
        "    return config.lock()\n"
    )
    assert load_config(str(file)).data.train[0]["size"] == 4
    sources = load_config(f"{file}:8").data.train
    texts = list(training_texts(sources))
    assert len(texts) == 16
    record = build_source(sources[0]).record(0)
    question, answer = record.questions[0].text, record.questions[0].answers[0]
    assert texts[0] == f"Question: {clean_question(question)} Answer: {answer}"

"""`--bert PATH` of `train`: a BERT of another language, up to the export."""

import numpy as np
import pytest

import blip2_jax
from blip2_jax.cli import train
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.lavis_file import write_lavis
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.training.train_config import read_config
from tests.support import peer_berts
from tests.support import peer_models as peers
from tests.support.processes import SUPPORT

TINY = f"--config={SUPPORT / 'tiny_experiment.py'}"
WORDS = peer_berts.WORDS


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    peer_berts.write_bert(folder, "BertModel", num_attention_heads=4)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures whose captions have capital letters and Chinese characters."""
    folder = tmp_path_factory.mktemp("data")
    for index, text in enumerate(("Ein Hund", "rotes Haus", "红狗", "Über")):
        blip2_jax.example_image(index).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"ein {text}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(bert, data, tmp_path_factory):
    """A run of one step on the BERT."""
    folder = tmp_path_factory.mktemp("run") / "run"
    command = [TINY, f"--bert={bert}", f"--data={data}", f"--workdir={folder}"]
    command += ["--config.steps=1", "--config.optimizer.warmup_steps=0"]
    command += ["--config.data.workers=0"]
    assert train.main(command) == 0
    return folder


@pytest.mark.slow
def test_sizes_and_tokenizer_are_those_of_the_bert(run, bert):
    stored = read_config(run)
    assert stored.data.tokenizer.qformer == str(bert)
    assert stored.init.from_weights == (str(bert),)
    qformer = open_model(run).config.qformer
    assert (qformer.width, qformer.heads, qformer.depth) == (16, 4, 2)
    assert (qformer.vocab_size, qformer.num_queries) == (len(WORDS) + 1, 4)
    model = blip2_jax.load(run)
    assert model.qformer_tokenizer.keeps_case
    (caption,) = model.caption("shapes:0", max_new_tokens=3, num_beams=1)
    assert isinstance(caption, str)


@pytest.mark.slow
def test_the_export_has_the_vocabulary(run, tmp_path):
    torch, transformers = peers.torch_and_transformers()
    source = open_model(run)
    write_huggingface(source, tmp_path / "theirs")
    theirs = transformers.Blip2ForImageTextRetrieval.from_pretrained(
        tmp_path / "theirs"
    )
    processor = transformers.Blip2Processor.from_pretrained(tmp_path / "theirs")
    assert processor.tokenizer.convert_tokens_to_ids("[DEC]") == len(WORDS)
    assert theirs.config.qformer_config.vocab_size == len(WORDS) + 1
    texts, images = ["ein Hund", "红狗 Haus"], [blip2_jax.example_image(0)] * 2
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    expected_ids = [WORDS.index(word) for word in ("[CLS]", "ein", "Hund", "[SEP]")]
    assert inputs["input_ids"][0].tolist()[:4] == expected_ids
    with torch.no_grad():
        itm = theirs.eval()(**inputs, use_image_text_matching_head=True)
    expected = itm.logits_per_image.softmax(-1)[:, 1].numpy()
    model = blip2_jax.load(run)
    np.testing.assert_allclose(model.match(images, texts).itm, expected, atol=1e-5)
    back = blip2_jax.load(tmp_path / "theirs")
    np.testing.assert_allclose(back.match(images, texts).itm, expected, atol=1e-5)

    write_lavis(source, tmp_path / "all.pth", complete=True)
    sizes = peers.write_sizes(tmp_path / "sizes.json", source.config)
    opened = open_model(tmp_path / "all.pth", ExtraWeights(sizes=sizes))
    peers.assert_same(opened.arrays, source.arrays)


def test_a_tokenizer_of_another_bert_is_refused(bert, tmp_path, capsys):
    few = tmp_path / "few"
    peer_berts.write_tokenizer(few, do_lower_case=False)
    (few / "vocab.txt").write_text("\n".join(WORDS[:12]))
    command = [TINY, f"--bert={bert}", f"--workdir={tmp_path / 'run'}"]
    assert train.main([*command, f"--config.data.tokenizer.qformer={few}"]) == 1
    assert "choose the tokenizer of this BERT" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_bert_is_refused(tmp_path, capsys):
    assert train.main([TINY, f"--bert={tmp_path}", "--workdir=x"]) == 1
    assert capsys.readouterr().err.count("\n") == 1

"""InstructBLIP: folders of transformers, LAVIS files, equality with transformers."""

import functools
import json

import jax
import numpy as np
import pytest

import blip2_jax
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.instructblip_folder import instructblip_rules
from blip2_jax.convert.language_families.registry import FAMILIES
from blip2_jax.convert.lavis_file import write_lavis
from blip2_jax.convert.model_source import expected_shapes
from blip2_jax.convert.native_folder import read_folder, write_folder
from blip2_jax.generation import DecodingConfig, lavis_defaults
from blip2_jax.inference import inputs
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.models.blip2 import normalize_images
from blip2_jax.models.presets import preset
from tests.support import instructblip_peer as instructblip
from tests.support import peer_models as peers
from tests.support.hub_server import hub_server
from tests.support.tolerances import assert_ids, assert_values

TEXTS = ["a large red circle", "small blue star left of a large green ring", ""]
TARGETS = ["red circle", "a star", "ring"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function that writes a model of a family; it returns path and peer."""

    @functools.cache
    def make(family):
        path = tmp_path_factory.mktemp(family) / "theirs"
        return path, instructblip.write_instructblip(path, family)

    return make


def pixels(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, 3), np.uint8)


def their_inputs(torch, theirs, model):
    """Return transformers' inputs for `TEXTS`, as its processor makes them."""
    ids, mask, qformer_ids, qformer_mask = model._prompt_arrays(TEXTS)
    image = np.full((len(TEXTS), 4), theirs.config.image_token_index)
    values = np.array(normalize_images(pixels(), "clip")).transpose(0, 3, 1, 2)
    arrays = {
        "pixel_values": values,
        "input_ids": np.concatenate([image, ids], axis=1).astype(np.int64),
        "attention_mask": np.concatenate([image >= 0, mask], axis=1).astype(np.int64),
        "qformer_input_ids": qformer_ids.astype(np.int64),
        "qformer_attention_mask": qformer_mask.astype(np.int64),
    }
    return {name: torch.tensor(array) for name, array in arrays.items()}


@pytest.mark.parametrize("family", instructblip.FAMILIES)
def test_queries_and_scores_equal_transformers(folder, family):
    torch, _ = peers.torch_and_transformers()
    path, theirs = folder(family)
    model = blip2_jax.load(path, precision="float32")
    arguments = their_inputs(torch, theirs, model)
    read = {
        name: arguments[name]
        for name in ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
    }
    with torch.no_grad():
        output = theirs.get_image_features(**read)
        expected = output.qformer_outputs.last_hidden_state[:, :4]
    bound = model.model.bind({"params": model.params})
    question = model._prompt_arrays(TEXTS)[2:]
    queries = bound.encode_queries(bound.encode_image(pixels()), *question)
    assert_values(queries, expected.numpy(), "queries with an instruction")
    assert_values(bound.project(queries), output.pooler_output.numpy(), "projection")
    other = bound.encode_queries(bound.encode_image(pixels()))
    assert np.abs(other - queries).max() > 1e-2
    scores = model.score(list(pixels()), TARGETS, TEXTS)
    for row, length in enumerate(scores.lengths):
        one = {name: array[row : row + 1] for name, array in arguments.items()}
        targets = scores.token_ids[row, :length].astype(np.int64)
        if family == "t5":
            one["labels"] = torch.tensor(targets[None])
        else:
            prompt = one["input_ids"][one.pop("attention_mask").bool()]
            one["input_ids"] = torch.cat([prompt, torch.tensor(targets)])[None]
        with torch.no_grad():
            logits = theirs(**one).logits[0]
        logits = logits if family == "t5" else logits[-length - 1 : -1]
        log_probs = torch.log_softmax(logits, -1)[range(length), targets]
        assert_values(scores.token_log_probs[row, :length], log_probs.numpy(), "logits")


SETTINGS = {
    "greedy_repetition": {"repetition_penalty": 1.5},
    "beam_3": {"num_beams": 3, "length_penalty": -1.0, "num_return_sequences": 2},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", instructblip.FAMILIES)
def test_ids_equal_those_of_transformers(folder, family, name):
    torch, _ = peers.torch_and_transformers()
    path, theirs = folder(family)
    model = blip2_jax.load(path, precision="float32")
    settings = {"max_new_tokens": 9, **SETTINGS[name]}
    arguments = their_inputs(torch, theirs, model)
    ids = theirs.generate(**arguments, do_sample=False, **settings).numpy()
    config = DecodingConfig(**settings)
    found = model._decode_batch(pixels(), model._prompt_arrays(TEXTS), config)
    found = jax.device_get(found)
    ids = ids.reshape(len(TEXTS), config.num_return_sequences, -1)
    prompt = 1 if family == "t5" else arguments["input_ids"].shape[1]
    ids = ids[..., prompt:] if ids.shape[-1] > 9 else ids
    for row in np.ndindex(found.lengths.shape):
        length = found.lengths[row]
        assert_ids(found.ids[row][:length], ids[row][:length], name)


def test_every_method_gives_the_prompt_to_the_qformer(folder):
    path, _ = folder("t5")
    model = blip2_jax.load(path, precision="float32")
    short = {"num_beams": 2, "max_new_tokens": 4}
    image, question = pixels(1), "what is it?"
    prompt = f"Question: {question} Short answer:"
    answer = model.answer(image, question, **short)
    assert answer == model.generate(image, prompt, length_penalty=-1.0, **short)
    assert model.caption(image, prompt, **short) == model.generate(
        image, prompt, **short
    )
    *_, ids, mask = model._prompt_arrays([prompt, ""])
    words = model.qformer_tokenizer.encode_words(prompt)
    assert mask.sum(axis=1).tolist() == [len(words) + 2, 2]  # [CLS] [SEP] is read too
    assert ids[0, 1 : len(words) + 1].tolist() == words
    several = model.answer([[image[0], image[0]]], question, **short)
    assert len(several) == 1
    ranked = model.rank(image, TARGETS, questions=question)
    scores = model.score(image, TARGETS, prompt)
    assert ranked[0][0].candidate == scores.log_probs.argmax()
    original = lavis_defaults("answer", model._family)
    assert (original.max_new_tokens, original.repetition_penalty) == (10, 1.5)
    assert model.answer(image, question, decoding="original")


@pytest.mark.parametrize("family", instructblip.FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip(tmp_path, family, dtype):
    _, transformers = peers.torch_and_transformers()
    instructblip.write_instructblip(tmp_path / "theirs", family, dtype)
    source = CheckpointFiles(tmp_path / "theirs")
    write_folder(open_model(tmp_path / "theirs"), tmp_path / "ours")
    model = read_folder(tmp_path / "ours")
    assert model.prompt_in_qformer and model.question_in_qformer
    write_huggingface(model, tmp_path / "back")
    peers.assert_same(CheckpointFiles(tmp_path / "back"), source)
    kind = transformers.InstructBlipForConditionalGeneration
    theirs, info = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.config.qformer_config.vocab_size == 191
    again = open_model(tmp_path / "back")
    assert again.config == open_model(tmp_path / "theirs").config


def test_an_exported_processor_gives_the_same_ids(folder, tmp_path):
    _, transformers = peers.torch_and_transformers()
    path, _ = folder("t5")
    write_huggingface(open_model(path), tmp_path / "back")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "back")
    assert type(processor).__name__ == "InstructBlipProcessor"
    theirs = processor(
        images=list(pixels()), text=TEXTS, padding=True, return_tensors="np"
    )
    model = blip2_jax.load(tmp_path / "back", precision="float32")
    ids, mask, qformer_ids, qformer_mask = model._prompt_arrays(TEXTS)
    for name, array, count in (
        ("input_ids", ids, 4),
        ("attention_mask", mask, 4),
        ("qformer_input_ids", qformer_ids, 0),
        ("qformer_attention_mask", qformer_mask, 0),
    ):
        expected = np.asarray(theirs[name])[:, count:]
        assert_ids(array[:, : expected.shape[1]], expected)
    values = normalize_images(inputs.as_images(list(pixels()), 28), "clip")
    expected = np.asarray(theirs["pixel_values"]).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_lavis_files(folder, tmp_path):
    """LAVIS's names, and the same model when the file is read again."""
    path, _ = folder("t5")
    model = open_model(path)
    write_lavis(model, tmp_path / "instruct.pth")
    names = set(CheckpointFiles(tmp_path / "instruct.pth"))
    assert names >= {
        "query_tokens",
        "ln_vision.weight",
        "t5_proj.bias",
        "t5_model.shared.weight",
        "Qformer.bert.embeddings.word_embeddings.weight",
        "Qformer.bert.embeddings.position_embeddings.weight",
        "Qformer.bert.embeddings.LayerNorm.bias",
        "Qformer.bert.encoder.layer.1.intermediate.dense.weight",
        "Qformer.bert.encoder.layer.1.output.LayerNorm.weight",
        "Qformer.bert.encoder.layer.1.output_query.dense.weight",
        "Qformer.bert.encoder.layer.0.crossattention.self.key.weight",
    }
    assert not any(name.startswith("Qformer.cls.") for name in names)
    sizes = peers.write_sizes(tmp_path / "sizes.json", model.config)
    extra = ExtraWeights(sizes=sizes)
    again = open_model(tmp_path / "instruct.pth", extra)
    assert again.prompt_in_qformer and again.question_in_qformer
    peers.assert_same(dict(again.arrays), dict(model.arrays))


@pytest.mark.parametrize("name", ["instructblip_flant5xl", "instructblip_vicuna13b"])
def test_names_at_full_size(name):
    """Every array of transformers' model of this size, without allocation."""
    torch, transformers = peers.torch_and_transformers()
    config = preset(name)
    sizes = config.language_model
    settings = FAMILIES[sizes.family].write(sizes, sizes.vocab_size, 1)
    text = transformers.AutoConfig.for_model(**settings)
    theirs = transformers.InstructBlipConfig(
        text_config=text, qformer_config={"vocab_size": 30523}
    )
    with torch.device("meta"):
        model = transformers.InstructBlipForConditionalGeneration(theirs)
    rules = instructblip_rules(config)

    def convert(arrays):
        return {k: v for rule in rules for k, v in rule.to_source(arrays).items()}

    written = jax.eval_shape(convert, expected_shapes(config, True))
    expected = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert {k: list(v.shape) for k, v in written.items()} == expected


def test_a_name_of_the_hub(folder, monkeypatch, tmp_path):
    path, _ = folder("t5")
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        server.add("org/instruct", path)
        source = open_model("org/instruct")
        assert source.qformer_tokenizer.startswith("hf://org/instruct@")
        model = blip2_jax.load("org/instruct")
        assert model.qformer_tokenizer.vocab_size == 191


def change(path, section, name, value):
    content = json.loads((path / "config.json").read_text())
    (content[section] if section else content)[name] = value
    (path / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("", "num_query_tokens", 5, "num_query_tokens is 5, but the weights have 4"),
        (
            "qformer_config",
            "vocab_size",
            9,
            "vocab_size is 9, but .* have 191",
        ),
        ("qformer_config", "use_x", 1, "use_x is 1, a setting that this package"),
        ("text_config", "model_type", "bloom", "the language model is 'bloom'"),
    ],
)
def test_wrong_settings(folder, tmp_path, section, name, value, message):
    path, _ = folder("t5")
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((path / file).read_bytes())
    change(tmp_path, section, name, value)
    with pytest.raises(SourceError, match=message):
        open_model(tmp_path)


def test_a_complete_model_takes_no_parts(folder):
    path, _ = folder("t5")
    with pytest.raises(SourceError, match="--text_branch does not apply"):
        open_model(path, ExtraWeights(text_branch="bert"))

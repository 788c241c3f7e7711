"""InstructBLIP with Vicuna: gradients, LAVIS's files, candidate answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blip2_jax
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.instructblip_folder import instructblip_rules
from blip2_jax.convert.lavis_file import released_sizes, write_lavis
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.convert.tables import name_table
from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.sources.base import Question, Record
from blip2_jax.data.text.prompts import decoder_only_example
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.evaluation.tasks import EvaluationBatches
from blip2_jax.evaluation.vqa import VqaTask
from blip2_jax.inference.language_programs import repetition_history
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.losses.objectives import lm_loss
from blip2_jax.models.blip2 import normalize_images
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import preset
from blip2_jax.nn.trees import flatten, unflatten
from tests.support import instructblip_peer as instructblip
from tests.support import peer_models as peers
from tests.support import vicuna_tokenizer
from tests.support.tolerances import assert_gradients, assert_values

ANSWERS = ["a star", "red circle", "ring"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write a model once; return path and peer."""
    path = tmp_path_factory.mktemp("vicuna") / "theirs"
    return path, instructblip.write_instructblip(path, "vicuna")


class OneQuestion(EvaluationSet):
    """One image with one question."""

    def __init__(self, image):
        self.image_key = "image"
        self._image = image
        question = Question("what is it?", (ANSWERS[0],) * 10, 0)
        self.records = [Record("0", 0, (), (question,))]

    def image(self, index):
        return self._image


def test_candidates_are_ranked_and_decoding_is_that_of_the_original(written):
    model = blip2_jax.load(written[0], precision="float32")
    assert model.language_tokenizer.end_id == model.language_tokenizer.bos_id == 2
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3), np.uint8)
    ranked = model.rank(image, ANSWERS, questions="what is it?")[0]
    prompt = "Question: what is it? Short answer:"
    scores = model.score(image, ANSWERS, prompt)
    assert [row.candidate for row in ranked] == np.argsort(-scores.log_probs).tolist()
    last = scores.lengths[:, None] - 1
    assert (np.take_along_axis(scores.token_ids, last, 1) == 2).all()
    task = VqaTask(candidates=ANSWERS)
    result = task.run(model, EvaluationBatches(OneQuestion(image[0]), batch_size=1))
    assert [row["answer"] for row in result.predictions] == [ranked[0].text]
    config = model._decoding_config("original", "answer", {})
    assert (config.max_new_tokens, config.length_penalty) == (9, 0)
    ids, mask = model._prompt_arrays([prompt])[:2]
    history = repetition_history(model._language_model_config, ids, mask, "original")
    assert history.tolist() == [[-1]]  # the end token is not penalised


TEXTS = (("a small blue star", "red circle"), ("", "a star"))
TRAINED = ("query_tokens", "qformer.", "language_projection.")


def batch_of(source):
    """Return rows of training."""
    bert = load_tokenizer(source.qformer_tokenizer, language_model=False)
    tokenizer = load_tokenizer(source.language_tokenizer, language_model=True)
    rows = [decoder_only_example(tokenizer, *pair, 40) for pair in TEXTS]
    names = [field.name for field in dataclasses.fields(rows[0])]
    ids, mask = bert.encode([prompt for prompt, _ in TEXTS], 10)
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    return {
        "image": images,
        "question_ids": ids,
        "question_mask": mask,
        **{name: np.stack([getattr(row, name) for row in rows]) for name in names},
    }


def their_loss(torch, theirs, batch):
    """Return transformers' loss of the same rows."""
    image = np.full((2, 4), theirs.config.image_token_index)
    values = np.array(normalize_images(batch["image"], "clip"))
    targets = np.where(batch["target_mask"], batch["text_ids"], -100)
    arrays = {
        "input_ids": np.concatenate([image, batch["text_ids"]], 1),
        "attention_mask": np.concatenate([image >= 0, batch["text_mask"]], 1),
        "qformer_input_ids": batch["question_ids"],
        "qformer_attention_mask": batch["question_mask"],
        "labels": np.concatenate([np.full((2, 4), -100), targets], 1),
    }
    tensors = {name: torch.tensor(array).long() for name, array in arrays.items()}
    pixels = torch.tensor(values.transpose(0, 3, 1, 2))
    return theirs(pixel_values=pixels, **tensors).loss


def test_loss_and_gradients_equal_transformers(written):
    torch, _ = peers.torch_and_transformers()
    path, theirs = written
    source = open_model(path)
    batch = batch_of(source)
    expected = their_loss(torch, theirs, batch)
    expected.backward()
    gradients = {
        name: np.zeros(array.shape) if array.grad is None else array.grad.numpy()
        for name, array in theirs.named_parameters()
        if name.startswith(TRAINED)
    }
    rules = [
        rule
        for rule in instructblip_rules(source.config)
        if rule.sources[0].startswith(TRAINED)
    ]
    theirs.zero_grad()
    params = jax.tree.map(jnp.asarray, unflatten(dict(source.arrays)))
    model = Blip2Stage2(source.config, question_in_qformer=True)

    @jax.jit
    @jax.value_and_grad
    def loss(trained):
        bound = model.bind({"params": params | trained})
        return lm_loss(*bound.training_logits(batch))

    parts = [name.rstrip(".") for name in TRAINED]
    value, found = loss({part: params[part] for part in parts})
    assert_values(value, expected.item(), "loss")
    expected_gradients = flatten(name_table.to_ours_complete(gradients, rules))
    found = flatten(found)
    assert found.keys() == expected_gradients.keys()
    for name, array in expected_gradients.items():
        assert_gradients(found[name], array, name)


def test_a_lavis_file_of_vicuna_and_its_towers(written, tmp_path):
    """The file has the trained part alone; Vicuna's folder has its own tokenizer."""
    _, transformers = peers.torch_and_transformers()
    path, theirs = written
    model = open_model(path)
    write_lavis(model, tmp_path / "all.pth")
    arrays = dict(CheckpointFiles(tmp_path / "all.pth"))
    assert "llm_proj.bias" in arrays and "llm_model.lm_head.weight" in arrays
    tower = "visual_encoder."
    vision = {k: v for k, v in arrays.items() if k.startswith(tower)}
    language = {k for k in arrays if k.startswith("llm_model.")}
    trained = {k: arrays[k] for k in arrays.keys() - vision.keys() - language}
    vision = {name.removeprefix(tower): array for name, array in vision.items()}
    file = peers.write_pickle(tmp_path / "trained.pth", trained)
    peers.write_pickle(tmp_path / "vision.pth", vision, wrapper="")
    vicuna = tmp_path / "vicuna"
    theirs.language_model.save_pretrained(vicuna)
    vicuna_tokenizer.write_tokenizer(vicuna)
    extra = {
        "vision": str(tmp_path / "vision.pth"),
        "language_model": str(vicuna),
        "qformer_tokenizer": "shapes:bert",
        "sizes": peers.write_sizes(tmp_path / "sizes.json", model.config),
    }
    with pytest.raises(ValueError, match="such as lavis:FOLDER of a Vicuna"):
        blip2_jax.load(file, **extra, language_tokenizer=str(vicuna))
    extra["language_tokenizer"] = f"lavis:{vicuna}"
    lavis = open_model(file, ExtraWeights(**extra))
    peers.assert_same(dict(lavis.arrays), dict(model.arrays))
    assert lavis.prompt_in_qformer and len(lavis.elsewhere) == 2
    write_huggingface(lavis, tmp_path / "back")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer("a star").input_ids[0] == 2
    peers.assert_same(CheckpointFiles(tmp_path / "back"), CheckpointFiles(path))
    write_folder(lavis, tmp_path / "ours")
    tokens = blip2_jax.load(tmp_path / "ours").language_tokenizer
    assert (tokens.bos_id, tokens.end_id) == (2, 2)


@pytest.mark.parametrize(
    ("name", "value"), [("kv_heads", 1), ("qkv_bias", True), ("rope_theta", 7.0)]
)
def test_lavis_has_the_first_llama_only(written, tmp_path, name, value):
    model = open_model(written[0])
    sizes = dataclasses.replace(model.config.language_model, **{name: value})
    config = dataclasses.replace(model.config, language_model=sizes)
    with pytest.raises(SourceError, match=f"Llama's {name} is {value}"):
        write_lavis(dataclasses.replace(model, config=config), tmp_path / "other.pth")


class Shapes(dict):
    """Shapes of arrays by name, like a file."""

    name = "file"

    def shape(self, array):
        return self[array]


@pytest.mark.parametrize("name", ["vicuna7b", "vicuna13b"])
def test_a_released_lavis_file_is_recognised_by_its_projection(name):
    sizes = preset(f"instructblip_{name}")
    cross = "Qformer.bert.encoder.layer.0.crossattention.self.key.weight"
    projection = (sizes.language_model.width, 768)
    source = Shapes({"query_tokens": (1, 32, 768), cross: (768, 1408)})
    source["llm_proj.weight"] = projection
    assert released_sizes(source) == sizes

"""MiniGPT-4: a projection beside a BLIP-2 and a Vicuna; the image within the prompt."""

import dataclasses

import jax
import numpy as np
import pytest

import blip2_jax
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.language_folder import language_sizes_of
from blip2_jax.convert.lavis_file import write_lavis
from blip2_jax.convert.minigpt4_file import minigpt4_sizes
from blip2_jax.data.text.prompts import IMAGE_MARK, MINIGPT4_PROMPT
from blip2_jax.generation import DecodingConfig
from blip2_jax.inference import word_attention
from blip2_jax.inference.load import open_model
from blip2_jax.models import presets
from tests.support import instructblip_peer, vicuna_tokenizer
from tests.support import peer_models as peers
from tests.support.tolerances import assert_ids, assert_values

PROMPTS = [MINIGPT4_PROMPT.format(words) for words in ("what is it?", "a star?")]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Write the files; return the options of `load`, the file, and Vicuna."""
    torch, transformers = peers.torch_and_transformers()
    root = tmp_path_factory.mktemp("minigpt4")
    peers.write_huggingface(root / "blip2", "t5")
    blip2 = open_model(root / "blip2")
    write_lavis(blip2, root / "all.pth")
    arrays, tower = dict(CheckpointFiles(root / "all.pth")), "visual_encoder."
    vision = {
        name.removeprefix(tower): array
        for name, array in arrays.items()
        if name.startswith(tower)
    }
    trained = {name: array for name, array in arrays.items() if tower not in name}
    peers.write_pickle(root / "vision.pth", vision, wrapper="")
    peers.write_pickle(root / "blip2.pth", trained)
    torch.manual_seed(1)
    vicuna = transformers.LlamaForCausalLM(
        instructblip_peer.vicuna_config(transformers)
    )
    vicuna.eval().save_pretrained(root / "vicuna")
    vicuna_tokenizer.write_tokenizer(root / "vicuna")
    random = np.random.default_rng(0)
    shapes = {"llama_proj.weight": (18, peers.WIDTH), "llama_proj.bias": (18,)}
    projection = {
        name: random.normal(size=shape).astype(np.float32) / 4
        for name, shape in shapes.items()
    }
    file = peers.write_pickle(root / "minigpt4.pth", projection)
    sizes = language_sizes_of(root / "vicuna")
    config = dataclasses.replace(blip2.config, language_model=sizes)
    options = {
        "qformer": str(root / "blip2.pth"),
        "vision": str(root / "vision.pth"),
        "language_model": str(root / "vicuna"),
        "sizes": peers.write_sizes(root / "sizes.json", config),
    }
    return options, file, vicuna


def their_inputs(torch, parts, model, images):
    """Return embeddings of every row: words, projected queries, words."""
    _, transformers = peers.torch_and_transformers()
    options, _, vicuna = parts
    tokenizer = transformers.AutoTokenizer.from_pretrained(options["language_model"])
    embed = vicuna.get_input_embeddings()
    bound = model.model.bind({"params": model.params})
    queries = bound.project(bound.encode_queries(bound.encode_image(images)))
    rows = []
    for row, prompt in enumerate(PROMPTS):
        before, behind = (
            torch.tensor(tokenizer(words, add_special_tokens=not number).input_ids)
            for number, words in enumerate(prompt.split(IMAGE_MARK))
        )
        image = torch.tensor(np.array(queries[row]))
        rows.append(torch.cat([embed(before), image, embed(behind)]))
    return rows


def test_the_image_stands_within_the_prompt_as_in_transformers(parts):
    torch, _ = peers.torch_and_transformers()
    options, file, vicuna = parts
    model = blip2_jax.load(file, **options, precision="float32")
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    rows = their_inputs(torch, parts, model, images)
    prompts = model._prompt_arrays(PROMPTS)
    config = DecodingConfig(max_new_tokens=6)
    found = jax.device_get(model._decode_batch(images, prompts, config))
    scores = model.score(images, "a star", PROMPTS)
    embed = vicuna.get_input_embeddings()
    for row, inputs in enumerate(rows):
        length = found.lengths[row, 0]
        with torch.no_grad():
            ids = vicuna.generate(
                inputs_embeds=inputs[None], max_new_tokens=6, do_sample=False
            )
            targets = torch.tensor(scores.token_ids[row, : scores.lengths[row]]).long()
            every = torch.cat([inputs, embed(targets)])
            logits = vicuna(inputs_embeds=every[None]).logits[0, len(inputs) - 1 : -1]
        assert_ids(found.ids[row, 0, :length], ids[0, :length].numpy(), "ids")
        log_probs = torch.log_softmax(logits, -1)[range(len(targets)), targets]
        actual = scores.token_log_probs[row, : len(targets)]
        assert_values(actual, log_probs.numpy(), "logits")
    answer = model.answer(images[0], "what is it?", num_beams=1, max_new_tokens=6)
    assert answer == model.generate(
        images[0], PROMPTS[0], num_beams=1, max_new_tokens=6
    )


def test_word_attention_reads_the_image_where_score_does(parts):
    options, file, _ = parts
    model = blip2_jax.load(file, **options, precision="float32")
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3), np.uint8)
    behind = PROMPTS[0].partition(IMAGE_MARK)[2]
    for prompt in (PROMPTS[0], f"###Human: {IMAGE_MARK}", IMAGE_MARK + behind):
        arrays = model._prompt_arrays([prompt])
        target = model._target_arrays(arrays, prompt, "a star")
        bound = model.model.bind({"params": model.params})
        features, gates = bound.encode_image(image), bound.attention_gates()
        values = word_attention._log_probs(bound, features, target.arrays, gates)[0]
        expected = model.score(image, "a star", prompt).token_log_probs[0]
        actual = np.asarray(values)[target.first :][: len(expected)]
        assert_values(actual, expected, "logits")
    words, maps = model.word_attention(image, "a star", prompt=PROMPTS[0])
    assert words == ["a", "star"] and (maps >= 0).all() and maps.max() > 0


def test_missing_and_other_parts_are_named(parts):
    options, file, _ = parts
    some = {name: path for name, path in options.items() if name != "qformer"}
    with pytest.raises(SourceError, match="name a LAVIS file of BLIP-2"):
        blip2_jax.load(file, **some)
    with pytest.raises(SourceError, match="--text_branch does not apply"):
        blip2_jax.load(file, **options, text_branch="x")
    with pytest.raises(SourceError, match="--qformer does not apply"):
        blip2_jax.load(options["qformer"], qformer="x")


def test_the_released_sizes_with_any_vicuna(parts):
    options, _, _ = parts
    config = minigpt4_sizes(CheckpointFiles(options["language_model"]))
    assert (config.vision, config.qformer) == (presets.EVA_VIT_G, presets.QFORMER_BASE)
    assert config.language_model.bos_id == 1

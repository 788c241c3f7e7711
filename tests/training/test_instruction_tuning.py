"""Training whose Q-Former reads the whole prompt, with instructions drawn at random."""

import json

import numpy as np
import pytest

import blip2_jax
from blip2_jax.configs import common, instruct_flant5xl, instruct_vicuna7b
from blip2_jax.convert.huggingface_export import architecture
from blip2_jax.data.data_config import data_config
from blip2_jax.data.examples import TextFormat
from blip2_jax.data.shapes.render import render
from blip2_jax.data.shapes.world import scene
from blip2_jax.data.sources.base import Question, Record
from blip2_jax.data.text import instructions
from blip2_jax.evaluation.evaluators import make_evaluator
from blip2_jax.inference.load import open_model
from blip2_jax.training.loop import train
from blip2_jax.training.train_config import ConfigError
from tests.support import tiny_runs

CAPTION = Record("key", 0, captions=("a red circle",))
QUESTION = Record("key", 0, questions=(Question("what is red?", ("a circle",), "1"),))


def text_format(family="encoder_decoder", **options):
    tokenizer = "shapes:t5" if family == "encoder_decoder" else "shapes:opt"
    config = data_config(
        {
            "tokenizer": {"qformer": "shapes:bert", "language_model": tokenizer},
            "prefix_split": "none",
            "caption_prompts": instructions.CAPTION_INSTRUCTIONS,
            "question_prompts": instructions.QUESTION_INSTRUCTIONS,
            "prompt": instructions.CAPTION_EVALUATION,
            "question_prompt": instructions.QUESTION_EVALUATION,
            **options,
        }
    )
    return TextFormat(config, f"question_{family}")


def test_an_instruction_is_drawn_for_each_text_of_training():
    form, rng = text_format(), np.random.default_rng(0)
    captions = [form.draw(CAPTION, rng) for _ in range(200)]
    prompts = {text.prompt for text in captions}
    assert prompts == set(instructions.CAPTION_INSTRUCTIONS)
    assert {text.target for text in captions} == {"a red circle"}
    questions = {form.draw(QUESTION, rng).prompt for _ in range(200)}
    filled = {
        text.format("what is red?") for text in instructions.QUESTION_INSTRUCTIONS
    }
    assert questions == filled
    assert form.draw(CAPTION, None).prompt == instructions.CAPTION_EVALUATION
    expected = "Question: what is red? Short answer:"
    assert form.draw(QUESTION, None).prompt == expected


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_the_qformer_reads_the_prompt(family):
    form = text_format(family, qformer_reads="prompt")
    texts = [form.draw(record, None) for record in (CAPTION, QUESTION)]
    arrays = form.arrays(texts)
    bert = form._question_tokenizer
    for row, text in enumerate(texts):
        mask = arrays["question_mask"][row]
        words = [bert.cls_id, *bert.encode_words(text.prompt), bert.sep_id]
        assert arrays["question_ids"][row][mask].tolist() == words
    alone = text_format(family).arrays(texts)["question_mask"]
    assert not alone[0].any() and 0 < alone[1].sum() < arrays["question_mask"][1].sum()
    with pytest.raises(ValueError, match="must be question or prompt, not 'all'"):
        text_format(qformer_reads="all")
    with pytest.raises(ValueError, match=r"question_prompt 'what' must contain \{\}"):
        text_format(question_prompts=("what",))


def test_a_run_is_an_instructblip(tmp_path):
    config = tiny_runs.tiny_config("stage2").unlock()
    config.steps, config.log_every, config.optimizer.warmup_steps = 1, 1, 0
    config.model.question_in_qformer = True
    config.data.qformer_reads = "prompt"
    config.data.question_prompts = ("Q: {} A:", "{}")
    config.data.max_text_length = 40
    both = {"kind": "shapes", "split": "train", "size": 16, "texts": "both"}
    config.data.train, config.data.question_share = (both,), 0.5
    config.evaluation.every, config.evaluation.metric = 1, "exact_match"
    questions = both | {"texts": "questions", "size": 4, "count": 1}
    config.evaluation.sources = (questions,)
    config.evaluation.max_new_tokens = 3
    assert train(config.lock(), tmp_path / "run", make_evaluator) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in json.loads(line)}
    assert any(name.endswith("exact_match") for name in names)
    source = open_model(tmp_path / "run")
    assert source.prompt_in_qformer
    assert architecture(source) == "InstructBlipForConditionalGeneration"
    model = blip2_jax.load(tmp_path / "run")
    photo, short = render(scene("train", 0)), {"num_beams": 1, "max_new_tokens": 3}
    prompt = "Question: what is red? Answer:"
    assert model.answer(photo, "what is red?", **short) == model.generate(
        photo, prompt, length_penalty=-1.0, **short
    )
    assert model._prompt_arrays([prompt])[3].sum() > len(["what", "is", "red?"]) + 2


def test_weights_are_square_roots_of_sizes():
    weights = common.square_root_weights({"a": 1, "b": 9})
    assert weights == {"a": 0.25, "b": 0.75}
    config = instruct_flant5xl.get_config()
    shares = [source["weight"] for source in config.data.train]
    assert sum(shares) == pytest.approx(1) and len(shares) == 6
    assert shares[0] / shares[3] == pytest.approx((566_747 / 9_009) ** 0.5)
    assert instruct_flant5xl.get_config("flant5xxl").batch_size == 64
    with pytest.raises(ConfigError, match="choose flant5xl or flant5xxl"):
        instruct_flant5xl.get_config("opt2.7b")
    vicuna = instruct_vicuna7b.get_config("vicuna13b")
    assert vicuna.model.preset == "instructblip_vicuna13b"
    assert vicuna.data.tokenizer.language_model == "lavis:weights/vicuna-13b-v1.1"
    assert vicuna.frozen_sources.language_model == "weights/vicuna-13b-v1.1"
    assert vicuna.data.train == config.data.train

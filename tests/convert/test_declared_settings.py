"""Every declared setting of a Hugging Face folder is used, refused or listed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.language_families.registry import SETTINGS
from blip2_jax.convert.model_source import build_model
from blip2_jax.convert.tables import huggingface_settings as settings
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.models.sizes import ACTIVATIONS
from blip2_jax.nn import layers
from blip2_jax.nn.trees import unflatten
from tests.support import peer_models as peers
from tests.support.changed_folder import changed
from tests.support.tolerances import assert_values

SECTIONS = {
    "": settings.BLIP2,
    "vision_config": settings.VISION,
    "qformer_config": settings.QFORMER,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a function that returns the folder of a family, written once."""
    written = {}

    def make(family):
        if family not in written:
            folder = tmp_path_factory.mktemp(family) / "theirs"
            peers.write_huggingface(folder, family)  # skips the test without torch
            written[family] = folder
        return written[family]

    return make


@pytest.mark.parametrize("family", ["opt", "t5", "mt5", "llama", "retrieval"])
def test_all_settings_of_transformers_are_known(family):
    """Newer versions of transformers may add one, which must be looked at."""
    _, transformers = peers.torch_and_transformers()
    config = peers.huggingface_config(transformers, family)
    declared = json.loads(config.to_json_string(use_diff=False))
    language_model = declared["text_config"]["model_type"]
    tables = SECTIONS | {"text_config": SETTINGS[language_model]}
    for section, table in tables.items():
        assert table.problem(declared[section] if section else declared) == ""


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_other_values_and_unknown_settings_are_refused_by_name(
    folders, tmp_path, family
):
    tables = SECTIONS | {"text_config": SETTINGS[family]}
    for number, (section, table) in enumerate(tables.items()):
        fixed = settings.COMMON_FIXED | table.fixed
        names = {*fixed, "no_such_setting"} - {"model_type", "is_encoder_decoder"}
        for name in names:
            value = ["another value"] if name == "auto_map" else "another value"
            assert table.problem({name: value}).startswith(f"{name} is ")
        name = f"{section}__no_such_setting" if section else "no_such_setting"
        folder = changed(folders(family), tmp_path / str(number), **{name: 3})
        match = rf"config\.json: {section}\.?no_such_setting is 3, a setting that"
        with pytest.raises(SourceError, match=match):
            open_model(folder)


REFUSED = {
    "qformer_config__hidden_act": "no_such_function",
    "qformer_config__attention_probs_dropout_prob": 0.3,
    "qformer_config__position_embedding_type": "relative_key",
    "vision_config__hidden_act": "mish",
    "vision_config__qkv_bias": False,
    "text_config__activation_function": "gelu",
    "text_config__layerdrop": 0.1,
    "text_config__layer_norm_elementwise_affine": False,
    "text_config__quantization_config": {"load_in_8bit": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_file_setting_and_value(folders, tmp_path, name):
    folder = changed(folders("opt"), tmp_path / "x", **{name: REFUSED[name]})
    with pytest.raises(SourceError) as error:
        open_model(folder)
    key = name.split("__")[1].replace("hidden_act", "act")
    for word in ("config.json", key, str(REFUSED[name])):
        assert word in str(error.value)


def test_the_first_t5_and_its_plain_feed_forward_are_refused(folders, tmp_path):
    for number, (name, value) in enumerate(
        {"feed_forward_proj": "relu", "scale_decoder_outputs": True}.items()
    ):
        values = {f"text_config__{name}": value, "text_config__is_gated_act": number}
        if number:
            del values["text_config__is_gated_act"]
        folder = changed(folders("t5"), tmp_path / str(number), **values)
        with pytest.raises(SourceError, match=r"config\.json: .*(gated|first T5)"):
            open_model(folder)


def project(source, images):
    """Compute the projected queries with this package."""
    model = build_model(source.config, False)
    params = unflatten({path: source.arrays[path] for path in source.arrays})

    @jax.jit
    def run(params, images):
        bound = model.bind({"params": params})
        return bound.project(bound.encode_queries(bound.encode_image(images)))

    return run(params, images)


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n != "gelu"])
def test_the_qformer_activation_equals_transformers(folders, tmp_path, name):
    torch, transformers = peers.torch_and_transformers()
    folder = changed(
        folders("opt"), tmp_path / "theirs", qformer_config__hidden_act=name
    )
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        features = theirs.vision_model(torch.tensor(images.transpose(0, 3, 1, 2)))
        queries = theirs.qformer(
            query_embeds=theirs.query_tokens.expand(2, -1, -1),
            encoder_hidden_states=features.last_hidden_state,
        ).last_hidden_state
        expected = theirs.language_projection(queries).numpy()
    assert_values(project(open_model(folder), images), expected)


def test_activations_are_those_of_the_layers():
    assert set(ACTIVATIONS) == set(layers.ACTIVATIONS)


def test_an_opt_head_that_is_not_tied_equals_transformers(folders, tmp_path):
    torch, transformers = peers.torch_and_transformers()
    folder = changed(
        folders("opt"), tmp_path / "theirs", text_config__tie_word_embeddings=False
    )
    arrays = load_file(folder / "model.safetensors")
    table = arrays["language_model.model.decoder.embed_tokens.weight"]
    head = np.random.default_rng(0).normal(size=table.shape).astype(np.float32)
    with pytest.raises(SourceError, match=r"head/kernel \(no .*lm_head\.weight\)"):
        open_model(folder)
    arrays["language_model.lm_head.weight"] = head
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})

    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    ids = np.arange(12, dtype=np.int64).reshape(2, 6) + 4
    with torch.no_grad():
        expected = theirs.language_model(input_ids=torch.tensor(ids)).logits.numpy()
    source = open_model(folder)
    assert not source.config.language_model.tied_head
    model = build_model(source.config, False).bind(
        {"params": unflatten({path: source.arrays[path] for path in source.arrays})}
    )
    mask = jnp.ones(ids.shape, bool)
    batch = {"text_ids": ids, "text_mask": mask, "target_mask": mask}
    logits, *_ = model.language_model.training_logits(None, batch)
    assert_values(logits, expected[:, :-1])

    write_huggingface(source, tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    np.testing.assert_array_equal(back["language_model.lm_head.weight"], head)


ODD = {
    "opt": {
        "text_config__dropout": 0.3,
        "text_config__tie_word_embeddings": False,
        "text_config__pad_token_id": 3,
    },
    "t5": {
        "text_config__layer_norm_epsilon": 1e-4,
        "text_config__dropout_rate": 0.2,
        "text_config__relative_attention_max_distance": 21,
        "text_config__dense_act_fn": "relu",
        "text_config__decoder_start_token_id": 2,
    },
    "retrieval": {},
}
OF_ALL = {
    "vision_config__layer_norm_eps": 1e-4,
    "vision_config__hidden_act": "quick_gelu",
    "vision_config__num_attention_heads": 4,
    "qformer_config__layer_norm_eps": 1e-5,
    "qformer_config__hidden_act": "relu",
    "qformer_config__num_attention_heads": 1,
    "qformer_config__hidden_dropout_prob": 0.25,
    "qformer_config__attention_probs_dropout_prob": 0.25,
}


@pytest.mark.parametrize("family", ODD)
def test_declared_settings_survive_the_round_trip(folders, tmp_path, family):
    """All settings in `used` return, odd values among them."""
    _, transformers = peers.torch_and_transformers()
    values = OF_ALL | ODD[family]
    theirs = changed(folders(family), tmp_path / "theirs", **values)
    if "text_config__tie_word_embeddings" in values:
        arrays = load_file(theirs / "model.safetensors")
        table = arrays["language_model.model.decoder.embed_tokens.weight"]
        arrays["language_model.lm_head.weight"] = table + 1
        save_file(arrays, theirs / "model.safetensors", metadata={"format": "pt"})
    source = open_model(theirs)
    write_huggingface(source, tmp_path / "back")
    assert open_model(tmp_path / "back").config == dataclasses.replace(source.config)

    read = transformers.Blip2Config.from_pretrained
    before, after = read(theirs), read(tmp_path / "back")
    tables = dict(SECTIONS)
    if family != "retrieval":
        tables["text_config"] = SETTINGS[family]
    for section, table in tables.items():
        old, new = (
            getattr(config, section) if section else config
            for config in (before, after)
        )
        for name in table.used:
            if not name.endswith("_config"):
                assert getattr(old, name) == getattr(new, name), (section, name)
    assert before.qformer_config.hidden_act == "relu"


def test_t5_starts_with_its_padding_where_no_start_is_declared(folders, tmp_path):
    """`transformers` 5 writes no `decoder_start_token_id` that it was not given."""
    folder = changed(folders("t5"), tmp_path / "x", text_config__pad_token_id=3)
    content = json.loads((folder / "config.json").read_text())
    del content["text_config"]["decoder_start_token_id"]
    (folder / "config.json").write_text(json.dumps(content))
    assert open_model(folder).config.language_model.decoder_start_id == 3


PREPROCESSING = {
    "image_mean": [0.5, 0.5, 0.5],
    "resample": 2,
    "do_normalize": False,
    "size": {"height": 384, "width": 384},
    "a_new_setting": 1,
}


@pytest.mark.parametrize("name", PREPROCESSING)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_other_preprocessing_of_images_is_refused(folders, tmp_path, name, file):
    _, transformers = peers.torch_and_transformers()
    folder = changed(folders("opt"), tmp_path / "x")
    side = open_model(folder).config.vision.image_size
    size = {"height": side, "width": side}
    declared = transformers.BlipImageProcessor(size=size).to_dict()
    nested = file == "processor_config.json"

    def write(values):
        values = {"image_processor": values} if nested else values
        (folder / file).write_text(json.dumps(values))

    write(declared)
    open_model(folder)
    write(declared | {name: PREPROCESSING[name]})
    with pytest.raises(SourceError, match=rf"{file}: .*{name} is "):
        open_model(folder)


def test_another_image_size_is_no_other_preprocessing(folders, tmp_path):
    """The declared size is that of the folder, whatever size is asked for."""
    folder = changed(folders("opt"), tmp_path / "x")
    side = open_model(folder).config.vision.image_size
    declared = {"size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(declared))
    larger = open_model(folder, ExtraWeights(image_size=2 * side))
    assert larger.config.vision.image_size == 2 * side

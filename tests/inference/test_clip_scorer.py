"""CLIP equals that of transformers; what a similarity depends on."""

import numpy as np
import pytest
from PIL import Image

import blip2_jax
from blip2_jax.data.images import center_image
from blip2_jax.inference import inputs
from blip2_jax.models.vision.vit import normalize_images
from tests.support import capfilt_models as capfilt
from tests.support.peer_models import torch_and_transformers
from tests.support.tolerances import assert_values

TEXTS = ["dog", "two cats", "a", "a very long text about cats"]  # one is cut
END = len(capfilt.CLIP_WORDS) - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function that writes a folder with a convention of the end token."""
    written = {}

    def make(end_id=2, **settings):
        key = (end_id, *settings.values())
        if key not in written:
            path = tmp_path_factory.mktemp("clip") / "theirs"
            written[key] = path, capfilt.write_clip(path, end_id=end_id, **settings)
        return written[key]

    return make


@pytest.mark.parametrize("end_id, activation", [(2, "quick_gelu"), (END, "gelu")])
def test_embeddings_and_logits_equal_those_of_transformers(folder, end_id, activation):
    torch, transformers = torch_and_transformers()
    path, theirs = folder(end_id, activation=activation)
    scorer = blip2_jax.load_clip(path)
    assert scorer.model.config.end_id == end_id
    images = capfilt.pictures(3)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(path)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=20)
    pixels = np.asarray(
        normalize_images(inputs.as_images(images, 28, center_image), "clip")
    )
    with torch.no_grad():
        output = theirs(
            input_ids=torch.tensor(tokens["input_ids"]),
            attention_mask=torch.tensor(tokens["attention_mask"]),
            pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)),
        )
    assert_values(scorer.embed_images(images), output.image_embeds.numpy(), "image")
    assert_values(scorer.embed_texts(TEXTS), output.text_embeds.numpy(), "text")
    scale = np.exp(scorer.params["logit_scale"])
    logits = scorer.similarity(images, TEXTS) * scale
    assert_values(logits, output.logits_per_image.numpy(), "logits")


def test_each_image_has_texts_of_its_own(folder):
    scorer = blip2_jax.load_clip(folder()[0], batch_size=2)
    images, texts = capfilt.pictures(3), [TEXTS[:2], TEXTS[2:3], TEXTS]
    rows = scorer.image_text_similarity(images, texts)
    assert [row.shape for row in rows] == [(2,), (1,), (4,)]
    pairs = scorer.similarity(images, TEXTS)
    np.testing.assert_allclose(rows[0], pairs[0, :2], atol=1e-6)
    np.testing.assert_allclose(rows[1], pairs[1, 2:3], atol=1e-6)
    np.testing.assert_allclose(rows[2], pairs[2], atol=1e-6)
    assert np.abs(pairs).max() <= 1 + 1e-6
    with pytest.raises(ValueError, match="2 lists of texts for 3 images"):
        scorer.image_text_similarity(images, texts[:2])
    with pytest.raises(ValueError, match="not one list"):
        scorer.image_text_similarity(images, TEXTS)


def test_half_precision(folder):
    path, _ = folder()
    images = capfilt.pictures(3)
    full = blip2_jax.load_clip(path).similarity(images, TEXTS)
    half = blip2_jax.load_clip(path, precision="bfloat16").similarity(images, TEXTS)
    np.testing.assert_allclose(half, full, atol=0.03)


def test_pixels_equal_those_of_transformers():
    """The shorter side is resized and the centre is cropped, as in the original."""
    _, transformers = torch_and_transformers()
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    for size in [(40, 52), (61, 28), (20, 20)]:
        (image,) = capfilt.pictures(1, size)
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        ours = normalize_images(center_image(image, 28)[None], "clip")[0]
        np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), atol=1e-5)


def test_a_long_narrow_image_is_not_enlarged_as_a_whole(monkeypatch):
    sizes, resize = [], Image.Image.resize

    def record(image, size, *arguments):
        sizes.append(size)
        return resize(image, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", record)
    (image,) = capfilt.pictures(1, (2, 3000))
    assert center_image(image, 224).shape == (224, 224, 3)
    assert sizes == [(224, 2), (224, 224)]


def test_the_tokenizer_must_be_that_of_the_model(folder, tmp_path):
    path, _ = folder(end_id=5)
    with pytest.raises(ValueError, match=f"end token is {END} in the tokenizer and 5"):
        blip2_jax.load_clip(path)


def test_real_tokenizer(testdata):
    from blip2_jax.data.text.tokenizers import load_clip_tokenizer

    tokenizer = load_clip_tokenizer(str(testdata / "tokenizers" / "clip"))
    assert tokenizer.encode("A photo of a cat", 77) == [
        49406, 320, 1125, 539, 320, 2368, 49407,
    ]  # fmt: skip
    long = tokenizer.encode("cat " * 100, 77)
    assert len(long) == 77 and long[-1] == 49407 and set(long[1:-1]) == {2368}

"""Any image encoder with any language model, at the released sizes."""

import jax
import pytest

from blip2_jax.models import presets
from blip2_jax.models.blip2 import parameter_shapes
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import LanguageModelConfig

LANGUAGE_MODELS = {
    name: sizes
    for name, sizes in vars(presets).items()
    if isinstance(sizes, LanguageModelConfig) and not name.startswith("SHAPES")
}


@pytest.mark.slow
@pytest.mark.parametrize("encoder", presets.ENCODERS)
def test_every_language_model_behind_an_encoder(encoder):
    vision = presets.ENCODERS[encoder]
    assert len(LANGUAGE_MODELS) >= 19
    for sizes in LANGUAGE_MODELS.values():
        model = Blip2Stage2(Blip2Config(vision, presets.QFORMER_BASE, sizes))
        shapes = parameter_shapes(model)
        projection = shapes["language_projection"]["kernel"]
        assert projection.shape == (presets.QFORMER_BASE.width, sizes.embedding_width)
        key = shapes["qformer"]["layer_0"]["cross_attention"]["key"]["kernel"]
        assert key.shape[0] == vision.width
        images = jax.ShapeDtypeStruct((2, *[vision.image_size] * 2, 3), "uint8")
        features = jax.eval_shape(
            lambda params, images, model=model: model.apply(
                {"params": params}, images, method=model.encode_image
            ),
            shapes,
            images,
        )
        assert features.shape == (2, vision.num_tokens, vision.width)

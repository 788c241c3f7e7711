"""An image encoder by itself: that of a BLIP-2 model, or one that models start from."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree, UInt8
from ml_collections import ConfigDict
from numpy import ndarray as Array

from blip2_jax.convert.clip import clip_encoder_sizes
from blip2_jax.convert.detect import DECLARED, kind_of
from blip2_jax.convert.encoder_folder import encoder_sizes
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.model_source import TOWER_PREFIXES
from blip2_jax.convert.native_folder import Manifest, is_native_folder, manifest_entry
from blip2_jax.inference.load import named_sizes, open_model
from blip2_jax.inference.shipped_models import SHIPPED_MODELS
from blip2_jax.models import presets
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import ViTConfig
from blip2_jax.models.vision.vit import VisionTransformer, normalize_images
from blip2_jax.nn.precision import PRECISIONS
from blip2_jax.nn.trees import flatten, unflatten
from blip2_jax.parallel.paths import as_path
from blip2_jax.training.cached_features import encoder_digest
from blip2_jax.training.checkpoints import is_run
from blip2_jax.training.frozen import Arrays, frozen_sources, tower_weights
from blip2_jax.training.initial_params import parameter_shapes
from blip2_jax.training.tasks import make_task, model_config
from blip2_jax.training.train_config import ConfigError, read_config
from blip2_jax.training.trained_model import TASKS

_PREFIX = TOWER_PREFIXES["vision"]
# Presets with the sizes of the encoders of the paper, by kind of file.
_PRESETS = {
    "eva": "pretrain",
    "clip": "pretrain_vitL",
    "clip_huggingface": "pretrain_vitL",
}


class ImageEncoder:
    """A frozen image encoder with its parameters.

    Attributes:
      config: its sizes.
      params: its parameters.
      name: name of its weights.
      digest: SHA-256 of its parameters before any cast; see `encoder_digest`.
      precision: dtype of matmul inputs.
    """

    def __init__(
        self, config: ViTConfig, arrays: Arrays, name: str, precision: str = "float32"
    ):
        """Hash the parameters and place them on the first device.

        Args:
          config: sizes.
          arrays: parameters of a model by path, of which the encoder's are taken.
          name: name of the weights.
          precision: "float32" or "bfloat16".

        Raises:
          ValueError: there is no such precision.
          SourceError: there is no parameter of an image encoder, or one is missing
            or has another shape.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {PRECISIONS}")
        self.config, self.name, self.precision = config, name, precision
        self._dtype = jnp.dtype(precision)
        params: dict[str, Array] = {}
        manifest: Manifest = {}
        for path in arrays:
            if path.startswith(_PREFIX):
                array = np.asarray(arrays[path])
                manifest[path] = manifest_entry(arrays, path, array)
                params[path.removeprefix(_PREFIX)] = array.astype(self._dtype)
        if not params:
            raise SourceError(f"{name} holds no image encoder")
        _check_shapes(config, params, name)
        self.digest = encoder_digest(manifest)
        self.params = jax.device_put(unflatten(params))

    def encode(self, images: UInt8[Array, "B R R 3"]) -> Float[jax.Array, "B P D"]:
        """Compute the features that a model trained on features reads.

        Args:
          images: images of the encoder's size.
        """
        return _encode(self.config, self._dtype, self.params, images)


def _check_shapes(config: ViTConfig, params: Arrays, name: str) -> None:
    """Compare parameters by path with those of an encoder of this size.

    Raises:
      SourceError: one is missing or has another shape.
    """
    tower = VisionTransformer(config)
    image = jax.ShapeDtypeStruct(
        (1, config.image_size, config.image_size, 3), jnp.float32
    )
    expected = jax.eval_shape(tower.init, jax.random.key(0), image)["params"]
    for path, leaf in flatten(expected).items():
        if path not in params:
            raise SourceError(f"{name} has no {_PREFIX}{path}")
        if params[path].shape != leaf.shape:
            raise SourceError(
                f"{_PREFIX}{path} is {params[path].shape} in {name}, an encoder of the "
                f"given sizes has {leaf.shape}"
            )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    config: ViTConfig, dtype: Any, params: PyTree, images: UInt8[jax.Array, "B R R 3"]
) -> Float[jax.Array, "B P D"]:
    tower = VisionTransformer(config, dtype).bind({"params": params})
    return tower(normalize_images(images, config.statistics))


def open_image_encoder(
    spec: str, sizes: str = "", precision: str = "float32"
) -> ImageEncoder:
    """Open an image encoder.

    Args:
      spec: a BLIP-2 model of any origin, a run that trained an image encoder, a file or
        folder of EVA-CLIP, CLIP, SigLIP or DINOv2, or "shapes:vision". As in BLIP-2,
        the last block of EVA-CLIP and CLIP is left out (paper section 3.4).
      sizes: preset (also of `presets.ENCODERS`) or JSON file with the sizes of a bare
        encoder; "": those of the run, of the shapes world, of the folder's
        `config.json`, or of the paper's encoder of this kind.
      precision: "float32" or "bfloat16".

    Raises:
      FileNotFoundError: there is no such file or folder.
      SourceError: it holds no image encoder, or one of other sizes.
    """
    config = _named_sizes(sizes) if sizes else own_sizes(spec)
    if config is None:
        source = open_model(spec)
        config, arrays = source.config, source.arrays
    else:
        arrays = tower_weights(spec, config)
    if not isinstance(config.vision, ViTConfig):
        raise SourceError(f"{spec} reads features and has no image encoder")
    return ImageEncoder(config.vision, arrays, spec, precision)


def configured_image_encoder(config: ConfigDict) -> ImageEncoder:
    """Open the frozen image encoder of a training configuration.

    Args:
      config: sizes, precision and `frozen_sources` of a run.

    Raises:
      ConfigError: the model has no image encoder, or trains it.
      SourceError: the weights are missing, or have other sizes.
    """
    task = make_task(config)
    vision = model_config(config.model).vision
    if not isinstance(vision, ViTConfig):
        raise ConfigError("the model of the configuration reads features")
    shapes = parameter_shapes(config, task)
    paths = [path for path in flatten(shapes.frozen) if path.startswith(_PREFIX)]
    if any(path.startswith(_PREFIX) for path in flatten(shapes.trainable)):
        raise ConfigError(
            "the configuration trains its image encoder, so that features cannot be "
            f"computed in advance: add '^{_PREFIX}' to config.frozen"
        )
    (arrays,) = frozen_sources(config, task.init_params, paths).values()
    name = config.frozen_sources.vision
    return ImageEncoder(vision, arrays, name, config.precision)


def _named_sizes(name: str) -> Blip2Config:
    """Return the sizes of a preset, of an image encoder, or those in a JSON file."""
    if name in presets.ENCODERS:
        return Blip2Config(presets.ENCODERS[name], presets.QFORMER_BASE)
    return named_sizes(name)


def own_sizes(spec: str) -> Blip2Config | None:
    """Return the sizes of a bare encoder; None for a BLIP-2 model.

    Raises:
      SourceError: the file does not say its sizes, or those of its `config.json` are
        refused.
    """
    if spec.startswith("shapes:"):
        return presets.preset("shapes_small" if spec.endswith("_small") else "shapes")
    if is_run(spec):
        config = read_config(spec)
        return None if config.task in TASKS else model_config(config.model)
    if spec in SHIPPED_MODELS or is_native_folder(as_path(spec)):
        return None
    files = CheckpointFiles(spec)
    kind = kind_of(files)
    if kind in DECLARED and files.config:
        return Blip2Config(encoder_sizes(files), presets.QFORMER_BASE)
    if kind in ("blip2_jax", *DECLARED):
        raise SourceError(f"{spec} does not say its sizes: name a preset (--sizes)")
    if kind == "clip_huggingface" and files.config:
        return Blip2Config(clip_encoder_sizes(files), presets.QFORMER_BASE)
    return presets.preset(_PRESETS[kind]) if kind in _PRESETS else None

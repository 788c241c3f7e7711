"""Training on cached features: comparison of the cache with the model's encoder.

A model with an image encoder trains on the features of that encoder alone. The weights
are hashed and compared, but need no memory on the devices.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.convert.model_source import TOWER_PREFIXES
from blip2_jax.convert.native_folder import Manifest, manifest_entry
from blip2_jax.data.feature_manifest import read_manifest
from blip2_jax.data.feature_origin import FeatureOrigin
from blip2_jax.models.sizes import FeaturesConfig, ViTConfig
from blip2_jax.nn.trees import Tree, flatten
from blip2_jax.parallel.paths import as_path
from blip2_jax.training.frozen import Arrays
from blip2_jax.training.train_config import ConfigError

KIND = "cached_features"
_PREFIX = TOWER_PREFIXES["vision"]


def encoder_digest(manifest: Manifest) -> str:
    """Return the SHA-256 of an image encoder from the digests of its parameters.

    Args:
      manifest: entries by path; other parameters than the encoder's are ignored.
    """
    sha = hashlib.sha256()
    for path in sorted(manifest):
        if path.startswith(_PREFIX):
            entry = manifest[path]
            sha.update(f"{path} {entry['digest']} {list(entry['shape'])}\n".encode())
    return sha.hexdigest()


def encoder_manifest(arrays: Arrays) -> Manifest:
    """Return the manifest of the image encoder in the parameters of a model."""
    return {
        path: manifest_entry(arrays, path, arrays[path])
        for path in arrays
        if path.startswith(_PREFIX)
    }


def evaluation_origins(config: ConfigDict) -> list[FeatureOrigin]:
    """Return the origins of the caches that the evaluation of a run reads.

    Raises:
      OSError, FileFormatError: see `read_manifest`.
    """
    if not config.evaluation.every:
        return []
    paths = (path for spec in config.evaluation.sources for path in _cache_paths(spec))
    return [read_manifest(as_path(path)).origin for path in paths]


def _cache_paths(spec: Any) -> list[str]:
    """Return the paths of the caches that a source spec names, at any depth."""
    if not isinstance(spec, Mapping | ConfigDict):
        return []
    inside = [path for value in spec.values() for path in _cache_paths(value)]
    return [spec["path"], *inside] if spec.get("kind") == KIND else inside


def unused_prefixes(
    config: ConfigDict, origins: Sequence[FeatureOrigin]
) -> tuple[str, ...]:
    """Return path prefixes of frozen parameters that a run never computes with."""
    sources = config.evaluation.sources if config.evaluation.every else ()
    evaluates_images = not all(map(_cache_paths, sources))
    return (_PREFIX,) if origins and not evaluates_images else ()


def describe(origins: Sequence[FeatureOrigin], unused: Sequence[str]) -> list[str]:
    """Return lines for the user on the caches of a run."""
    kept = "" if unused else "; the encoder is kept for the evaluation"
    return [
        f"features of {origin.encoder} from {origin.cache}: "
        f"{'whole images' if origin.crops == 1 else f'{origin.crops} random crops'}"
        f"{kept}"
        for origin in origins
    ]


def check_trainable(origins: Sequence[FeatureOrigin], trainable: Tree) -> None:
    """Check that a run on cached features does not train the image encoder.

    Raises:
      ConfigError: it does.
    """
    trained = [path for path in flatten(trainable) if path.startswith(_PREFIX)]
    if origins and trained:
        raise ConfigError(
            f"{origins[0].cache} holds features of a frozen encoder, but this run "
            f"trains {trained[0]} and {len(trained) - 1} more arrays of it: add "
            f"'^{_PREFIX}' to config.frozen, or train on images"
        )


def check_encoder(
    origins: Sequence[FeatureOrigin],
    vision: ViTConfig | FeaturesConfig,
    manifest: Manifest,
    name: str,
) -> None:
    """Compare the encoders of caches with that of a model.

    Args:
      origins: of the caches.
      vision: sizes of the model's encoder.
      manifest: of the model's frozen parameters.
      name: of the encoder's weights, for the message.

    Raises:
      ConfigError: resolution, number of tokens, sizes or weights differ; the message
        names both sides.
    """
    for origin in origins:
        if isinstance(vision, ViTConfig) and origin.resolution != vision.image_size:
            cached, own = f"{origin.resolution} px", f"{vision.image_size} px"
            raise _differs(origin, "images of", cached, own)
        cached, own = (
            f"{each.num_tokens} tokens x {each.width}" for each in (origin, vision)
        )
        if cached != own:
            raise _differs(origin, "features of", cached, own)
        if isinstance(vision, ViTConfig):
            _check_weights(origin, vision, manifest, name)


def _check_weights(
    origin: FeatureOrigin, vision: ViTConfig, manifest: Manifest, name: str
) -> None:
    """Compare the other sizes and the digest of an encoder; see `check_encoder`."""
    for field in dataclasses.fields(vision):
        # Caches of earlier versions lack fields that have a default.
        cached = origin.sizes.get(field.name, field.default)
        own = getattr(vision, field.name)
        if cached != own:
            both = f"{field.name} {cached}", f"{field.name} {own}"
            raise _differs(origin, "an encoder of", *both)
    digest = encoder_digest(manifest)
    if origin.digest != digest:
        raise _differs(
            origin,
            "features of the encoder",
            f"{origin.digest[:12]} ({origin.encoder})",
            f"{digest[:12]} ({name})",
        )


def _differs(origin: FeatureOrigin, what: str, cached: str, own: str) -> ConfigError:
    return ConfigError(
        f"{origin.cache} holds {what} {cached}, the model has {own}: use the "
        "encoder of the cache, or cache the features of the model's"
    )

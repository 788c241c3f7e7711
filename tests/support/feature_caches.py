"""Feature caches of tiny encoders."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.data.data_config import data_config
from blip2_jax.data.feature_manifest import FeatureManifest
from blip2_jax.inference.cache_manifest import write_manifest
from blip2_jax.inference.cache_options import CacheOptions, EncoderRecipe
from blip2_jax.inference.feature_cache import FeatureCacheJob
from blip2_jax.parallel.shard_jobs import run_shards
from blip2_jax.training.train_config import to_plain


def cache_job(out: pathlib.Path, config: ConfigDict, **options: Any) -> FeatureCacheJob:
    """Return the job of a configuration's data and encoder, ready to run."""
    data = data_config(config.data)
    defaults = {"image": data.image, "seed": config.seed, "batch_size": 4}
    job = FeatureCacheJob(
        data.train,
        EncoderRecipe(to_plain(config)),
        CacheOptions(**{**defaults, **options}),
        out,
    )
    job.origin, _ = job.inspect()
    return job


def write_cache(
    out: pathlib.Path, config: ConfigDict, **options: Any
) -> FeatureManifest:
    """Write a cache of a configuration's data."""
    job = cache_job(out, config, **options)
    run_shards(job)
    manifest = write_manifest(job)
    assert manifest is not None
    return manifest

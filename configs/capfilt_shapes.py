"""blip2-jax train --config capfilt_shapes:DIRECTORY --workdir runs/capfilt_shapes/RUN

A short stage 1 on the shapes world, on tars of scenes with raw, filtered or clean
captions. `python -m benchmarks.capfilt_shapes` writes the tars in DIRECTORY, makes all
the runs, and compares them (docs/capfilt.md).
"""

from ml_collections import ConfigDict

from blip2_jax.configs import shapes_stage1


def get_config(directory: str = "runs/capfilt_shapes/raw") -> ConfigDict:
    """Build the configuration; `directory` holds the tars."""
    config = shapes_stage1.get_config().unlock()
    config.steps, config.batch_size = 160, 32
    config.optimizer.warmup_steps = 20
    config.data.train = (
        {
            "kind": "tars",
            "paths": f"{directory}/*.tar",
            "index_directory": f"{directory}/index",
        },
    )
    return config.lock()

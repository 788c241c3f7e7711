"""blip2-jax train --config ablation_projector:shapes,linear --workdir runs/linear

Stage 2 with a projector in place of the Q-Former, or with a Q-Former of as many
queries, at equal steps. The argument is "WORLD,BRIDGE[,NAME=PATH...]".

WORLD:
  shapes     the shapes world, 4 visual tokens; captions only
  flickr8k   Flickr8k, 9 visual tokens; further items are the paths of
             `flickr8k_stage2`
  opt2.7b    the paper's stage 2 with ViT-g and OPT 2.7B, 64 visual tokens
BRIDGE:
  linear          one linear layer over the joined patches of a cell
  mlp             a layer, GELU and a layer over the average of a cell's patches
  qformer         Q-Former without stage 1
  qformer_stage1  Q-Former of the stage-1 run `stage1=DIR` with as many queries, for
                  example `shapes_stage1:4`
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common, flickr8k_stage2, shapes_tables, stage2_opt2_7b
from blip2_jax.training.train_config import ConfigError

TOKENS = {"shapes": 4, "flickr8k": 9, "opt2.7b": 64}
HIDDEN = {"shapes": 512, "flickr8k": 768, "opt2.7b": 2560}  # of the MLP
BRIDGES = ("linear", "mlp", "qformer", "qformer_stage1")


def get_config(argument: str = "shapes,linear") -> ConfigDict:
    """Build the configuration; `argument` is "WORLD,BRIDGE[,NAME=PATH...]"."""
    world, _, rest = argument.partition(",")
    bridge, _, paths = rest.partition(",")
    if world not in TOKENS or bridge not in BRIDGES:
        raise ConfigError(
            f"no ablation {world!r} with {bridge!r}: choose {', '.join(TOKENS)}, then "
            f"{', '.join(BRIDGES)}"
        )
    config = _recipe(world, paths).unlock()
    if bridge != "qformer_stage1":
        config.init.from_run, config.carried = "", ()
    if bridge.startswith("qformer"):
        qformer = config.model.overrides.get("qformer", {})
        config.model.overrides.qformer = {**qformer, "num_queries": TOKENS[world]}
        return config.lock()
    config.model.overrides.projector = {
        "kind": "projector",
        "num_tokens": TOKENS[world],
        "join": "concatenate" if bridge == "linear" else "average",
        "hidden_width": HIDDEN[world],
    }
    config.optimizer.rate_factors = ()  # they are the Q-Former's
    return config.lock()


def _recipe(world: str, paths: str) -> ConfigDict:
    """Return the stage-2 configuration of a world."""
    if world == "flickr8k":
        return flickr8k_stage2.get_config(paths)
    stage1 = common.parse_paths(paths, {"stage1": f"runs/{world}_stage1"})["stage1"]
    if world == "shapes":
        return shapes_tables.stage2("opt").make(stage1)
    config = stage2_opt2_7b.get_config().unlock()
    config.init.from_run = stage1
    return config

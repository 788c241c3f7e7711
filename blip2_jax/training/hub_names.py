"""Names of the Hugging Face hub in a run's configuration, each with its commit.

A run stores the commits, so that it reads the same files when it is continued, whatever
is committed to a repository in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.data import hub
from blip2_jax.data.text.tokenizer_files import LAVIS_PREFIX
from blip2_jax.training.train_config import from_plain, to_plain

# Keys whose values are paths, so that ORG/NAME stands for a repository. Elsewhere names
# of the hub begin with "hf:".
PATHS = ("frozen_sources.", "init.from_weights.", "data.tokenizer.")


def pin_hub_names(
    config: ConfigDict, recorded: Mapping[str, str]
) -> tuple[ConfigDict, dict[str, str]]:
    """Replace the names of the hub in a configuration by names with a commit.

    Args:
      config: configuration as the user gave it.
      recorded: names with commits by the name that the user gave, of the run that is
        continued; they have priority over what the hub has now.

    Returns:
      The configuration, locked, and the names with commits by the given name.

    Raises:
      HubError: there is no such repository, or the hub cannot be reached.
    """
    names: dict[str, str] = {}

    def pin(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: pin(item, f"{key}{name}.") for name, item in value.items()}
        if isinstance(value, list):
            return [pin(item, key) for item in value]
        if not isinstance(value, str):
            return value
        if not (value.startswith("hf:") or (value and key.startswith(PATHS))):
            return value
        spec = value.removeprefix(LAVIS_PREFIX)
        prefix = value.removesuffix(spec)
        pinned = recorded.get(value) or prefix + hub.pinned(spec)
        if pinned != value:
            names[value] = pinned
        return pinned

    return from_plain(pin(to_plain(config), "")), names

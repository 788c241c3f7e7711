"""Comparison of a run's data with the data that it began with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from blip2_jax.data.sources.content_digest import TIMES
from blip2_jax.training.train_config import ConfigError

_CONTENT = "content"
Fingerprint = Mapping[str, Any]


def verify_data(
    recorded: Sequence[Fingerprint], current: Sequence[Fingerprint]
) -> list[str]:
    """Compare the fingerprints of the sources of a run with the recorded ones.

    Only what was recorded is compared: runs of earlier versions have no digests of the
    content. Times of files are not compared alone, because a copy has others.

    Returns:
      Lines for the user.

    Raises:
      ConfigError: a source differs; the message names it and what differs.
    """
    current = json.loads(json.dumps(current))
    if len(recorded) != len(current):
        raise ConfigError(
            f"the data of this run was {len(recorded)} sources, is now {len(current)}"
        )
    notes: list[str] = []
    for before, now in zip(recorded, current, strict=True):
        _verify_summary(before, now)
        notes += _verify_content(before, now)
    return notes


def _verify_summary(before: Fingerprint, now: Fingerprint) -> None:
    """Compare name, counts, first keys and share of a source."""
    was = {key: value for key, value in before.items() if key != _CONTENT}
    current = {key: now.get(key) for key in was}
    if was != current:
        raise ConfigError(f"the data of this run was {was}, is now {current}")


def _verify_content(before: Fingerprint, now: Fingerprint) -> list[str]:
    """Compare the digests of a source's content; return lines for the user."""
    digests, current = before.get(_CONTENT, {}), now[_CONTENT]
    differing = [part for part in digests if digests[part] != current.get(part)]
    if content := [part for part in differing if not part.endswith(TIMES)]:
        raise ConfigError(
            f"the data of this run was changed: {now['name']} has other "
            f"{', '.join(content)} than when the run began. Restore the data, or "
            "begin a run in another --workdir, e.g. with config.init.from_run"
        )
    return [
        f"{now['name']}: {part} differ from those when the run began; sizes and "
        "sampled contents are the same"
        for part in differing
    ]

"""Names of splits in the names of files and in columns."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The paper's COCO training set includes Karpathy's "restval".
_SPLIT_OF_WORD = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_WORD = re.compile(r"[a-z]+")


def split_of(name: str) -> str:
    """Return the split that a name contains as a word, "" for none or several.

    For example, "train" for "captions_train2017.json" and "validation" for "val.csv".
    """
    words = _WORD.findall(name.lower())
    splits = {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}
    return splits.pop() if len(splits) == 1 else ""


def same_split(first: str, second: str) -> bool:
    """Return True if two names mean the same split, as "val" and "validation" do."""
    return first == second or split_of(first) == split_of(second) != ""


def choose_split(splits: Iterable[str], wanted: str, default: str, holder: str) -> str:
    """Choose one of several splits.

    Args:
      splits: names of the splits.
      wanted: the split to take; "" for none.
      default: the split to take if there are several and none is wanted.
      holder: what holds the splits, in errors.

    Raises:
      ValueError: the wanted split does not exist, or there is no default.
    """
    splits = sorted(set(splits))
    if not wanted and len(splits) == 1:
        return splits[0]
    name = wanted or default
    matches = [split for split in splits if same_split(split, name)]
    if not matches:
        raise ValueError(
            f"{holder} holds the splits {', '.join(splits)}"
            + (f", not {name!r}" if wanted else "; choose one of them (--split)")
        )
    return name if name in matches else matches[0]

"""Tokens that users add to a vocabulary: ranges, and checks of their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from blip2_jax.data.text.tokenizers import clean_caption

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_tokens(
    tokens: Sequence[str], name: str, *, keep_case: bool = True
) -> list[str]:
    """Return tokens with every range written out: "<loc_{0..2}>" is three tokens.

    Args:
      tokens: tokens, of which each may hold a range.
      name: of the list, for messages.
      keep_case: texts keep their capital letters; see `clean_caption`.

    Raises:
      ValueError: a token is empty, occurs twice, holds a space, or is changed by the
        cleaning of captions, so that no text could hold it.
    """
    expanded = [text for token in tokens for text in _expand(token)]
    seen: set[str] = set()
    for token in expanded:
        where = f"added_tokens.{name}: {token!r}"
        if not token or token.split() != [token]:
            raise ValueError(f"{where} is no token: it is empty or holds a space")
        if token in seen:
            raise ValueError(f"{where} occurs twice")
        seen.add(token)
        cleaned = clean_caption(token, keep_case=keep_case)
        if cleaned != token:
            raise ValueError(
                f"{where} becomes {cleaned!r} when captions are cleaned: choose a name "
                "without punctuation" + ("" if keep_case else " and capital letters")
            )
    return expanded


def _expand(token: str) -> list[str]:
    """Write out the range in a token, if there is one."""
    match = _RANGE.search(token)
    if match is None:
        return [token]
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [f"{token[: match.start()]}{n}{token[match.end() :]}" for n in numbers]

"""Casing of BERT's tokenizers: what their files say, and what transformers does.

A BERT tokenizer declares its casing twice: in the normalizer of `tokenizer.json`, and
as `do_lower_case`, `strip_accents` and `tokenize_chinese_chars` in
`tokenizer_config.json`. transformers' `BertTokenizer` replaces the first by the second
or, where that says nothing, by the values of the English uncased BERT.
"""

from __future__ import annotations

import pathlib
from typing import Any

from blip2_jax.parallel.files import parse_json, read_text

# Settings of the normalizer, with their names and defaults in `BertTokenizer`.
_SETTINGS = {
    "lowercase": ("do_lower_case", True),
    "strip_accents": ("strip_accents", None),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
}
# Share of words with capital letters above which a vocabulary is a cased one. Uncased
# ones have a few, such as [CLS].
_CASED_SHARE = 0.05


def keeps_case(tokenizer: Any) -> bool:
    """Return True if a tokenizer distinguishes capital letters."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is None or normalizer.normalize_str("A") == "A"


def undeclared_casing(directory: pathlib.Path) -> dict[str, Any]:
    """Return the casing that only the `tokenizer.json` of a BERT declares.

    Args:
      directory: of the tokenizer.

    Returns:
      Arguments of `BertTokenizer`: those that are not its defaults.
    """
    file = directory / "tokenizer.json"
    stored: Any = None
    if file.is_file():
        stored = parse_json(read_text(file), file).get("normalizer")
    if not isinstance(stored, dict) or stored.get("type") != "BertNormalizer":
        return {}
    declared = _config(directory)
    return {
        theirs: stored[ours]
        for ours, (theirs, default) in _SETTINGS.items()
        if theirs not in declared and stored.get(ours, default) != default
    }


def check_casing(tokenizer: Any, directory: pathlib.Path) -> None:
    """Check that a cased `vocab.txt` is not read in lower case for want of a setting.

    Raises:
      ValueError: it is; the message says which setting is missing.
    """
    alone = not (directory / "tokenizer.json").is_file()
    is_text = (directory / "vocab.txt").is_file()
    if not (alone and is_text) or keeps_case(tokenizer):
        return
    if "do_lower_case" in _config(directory):
        return
    words = [word for word in tokenizer.get_vocab() if not word.startswith("[")]
    cased = sum(word != word.lower() for word in words)
    if cased > _CASED_SHARE * len(words):
        raise ValueError(
            f"{directory / 'vocab.txt'} has {cased:,} words with capital letters, but "
            "texts would be read in lower case: write tokenizer_config.json with "
            '{"do_lower_case": false} beside it, or true if that is meant'
        )


def _config(directory: pathlib.Path) -> dict[str, Any]:
    """Return the content of `tokenizer_config.json`; {} if there is none."""
    file = directory / "tokenizer_config.json"
    content = parse_json(read_text(file), file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}

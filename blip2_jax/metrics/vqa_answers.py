"""Normalisation of VQA answers.

The rules of visualqa.org/evaluation: remove punctuation, lower the case, replace number
words by digits, remove articles, and restore the apostrophes of contractions.
"""

from __future__ import annotations

import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# A full stop is removed unless a digit follows. The official pattern was meant to check
# the preceding character too, but by a typing slip does not: "x.5" stays as "3.5" does.
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_FULL_STOPS = 32  # the official code passes re.UNICODE (32) as the count

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {
    word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())
}

_CONTRACTIONS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd
he's how'd how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't
needn't not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's
someone'd someone'll someone's something'd something'll that's there'd there're
there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're
what's what've when's where'd where's where've who'd who'll who's who've why'll why're
why's won't would've wouldn't y'all you'd you'll you're you've couldn't've hadn't've
he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've
you'd've
"""


def _misspellings(word: str) -> dict[str, str]:
    """Map each spelling that lacks one of a word's apostrophes to the word."""
    positions = [match.start() for match in re.finditer("'", word)]
    return {word[:position] + word[position + 1 :]: word for position in positions}


_RESTORED = {
    misspelling: word
    for contraction in _CONTRACTIONS.split()
    for misspelling, word in _misspellings(contraction).items()
}


def strip_marks(text: str) -> str:
    """Remove punctuation; a mark inside a word becomes a space.

    Apostrophes and colons stay. If the text has a number such as 1,000, no mark leaves
    a space, as in the official code.
    """
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _MARKS:
        if mark in text:
            at_edge = f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if at_edge or has_number else " ")
    return _FULL_STOP.sub("", result, count=_MAX_FULL_STOPS)


def plain_words(text: str) -> str:
    """Lower the case, replace number words, drop articles, restore apostrophes."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(
        _RESTORED.get(word, word) for word in words if word not in _ARTICLES
    )


def normalise_answer(text: str) -> str:
    """Normalise an answer for comparison: `strip_marks`, then `plain_words`."""
    return plain_words(strip_marks(text))

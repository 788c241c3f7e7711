"""Answers of visual question answering, brought to one spelling.

The rules are those of the VQA evaluation page (visualqa.org/evaluation): marks out,
lower case, number words to digits, articles out, apostrophes into contractions.
"""

from __future__ import annotations

import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# A full stop goes unless a digit follows. The official pattern wants to look behind
# as well and, by a typing slip, does not: "3.5" stays and so does "x.5".
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_FULL_STOPS = 32  # the official code hands re.UNICODE (32) over as a count

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


def _without_each_apostrophe(word: str) -> dict[str, str]:
    """The spellings of a word that lack one of its apostrophes."""
    places = [match.start() for match in re.finditer("'", word)]
    return {word[:place] + word[place + 1 :]: word for place in places}


_SPELT_OUT = {
    bare: word
    for full in _CONTRACTIONS.split()
    for bare, word in _without_each_apostrophe(full).items()
}


def strip_marks(text: str) -> str:
    """Remove punctuation; a mark inside a word becomes a space.

    Apostrophes and colons stay. If the text holds a number such as 1,000, marks
    vanish everywhere without leaving a space (so does the official code).
    """
    vanish = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _MARKS:
        if mark in text:
            at_edge = f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if at_edge or vanish else " ")
    return _FULL_STOP.sub("", result, count=_MAX_FULL_STOPS)


def plain_words(text: str) -> str:
    """Lower case; digits for number words, no articles, contractions spelt out."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    kept = (word for word in words if word not in _ARTICLES)
    return " ".join(_SPELT_OUT.get(word, word) for word in kept)


def normalise_answer(text: str) -> str:
    """Both of the above: the form in which answers are compared."""
    return plain_words(strip_marks(text))

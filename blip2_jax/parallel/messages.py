"""Texts of errors, for messages of one line."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that is not blank; "" if none is."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), "")

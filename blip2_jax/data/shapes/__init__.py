"""The embedded default: a generated world of coloured shapes, in pictures and text."""

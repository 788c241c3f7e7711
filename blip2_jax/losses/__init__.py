"""Losses of both stages, of their fine-tunes and of the frozen towers."""

"""Tokenizers, prompts and vocabularies."""

"""Conversion of weights between this package, LAVIS, Hugging Face and their towers."""

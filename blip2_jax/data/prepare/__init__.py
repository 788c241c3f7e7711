"""Conversion of any data source to shards of ArrayRecord files or tars."""

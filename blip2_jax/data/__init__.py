"""Data sources, texts, images and batches."""

"""Trained models in use: loading, captions, answers, matching and embeddings."""

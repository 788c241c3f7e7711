"""Serve a model to several users: the batching engine, and an HTTP server on it."""

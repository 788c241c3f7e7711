"""Evaluation tasks, and what is computed from their examples."""

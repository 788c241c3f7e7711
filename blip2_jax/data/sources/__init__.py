"""Data sources; `registry.build_source` builds them from their specs."""

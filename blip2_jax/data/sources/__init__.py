"""Where images and texts come from; `registry.build_source` builds any of them."""

"""Arrays and layers: attention, masks, KV cache, stacks, dropout, precision."""

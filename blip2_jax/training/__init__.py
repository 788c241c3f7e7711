"""Training: configuration, set-up, step, loop, checkpoints, optimizer."""

"""Plan a training step for hardware that is not at hand: memory, traffic and time."""

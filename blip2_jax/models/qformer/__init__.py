"""The Q-Former."""

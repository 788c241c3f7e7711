"""The commands: `blip2-jax NAME` and `python launch/NAME.py` run one module each."""

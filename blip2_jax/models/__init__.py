"""The models: both stages of BLIP-2, their parts and presets."""

"""Measures of loading: the weight map, checkpoints of Hugging Face, config.json, and damaged files."""

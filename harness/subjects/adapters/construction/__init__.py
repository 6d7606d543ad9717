"""Build a GPT at a size: from keyword arguments, a config object, a dict, or global names of its module."""

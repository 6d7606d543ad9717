"""The page of a scaling sweep, from its records alone."""

"""Measures of the figures that the lessons state: the claims of verifications/claims.toml."""

"""Correct GPT-2s as different people write them, none of which the adapters were told about."""

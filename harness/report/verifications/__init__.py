"""The sections of the report about verifications."""

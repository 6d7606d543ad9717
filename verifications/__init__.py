"""The suites: pytest collects every *.toml file here as a file of checks (`pytest --pyargs verifications`)."""

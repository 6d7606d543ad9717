"""The suites: every *.toml here is collected by pytest as a file of checks (`pytest --pyargs verifications`)."""

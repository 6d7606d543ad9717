"""Suite files: TOML read into checks, the registry of measures, and expectations that judge readings."""

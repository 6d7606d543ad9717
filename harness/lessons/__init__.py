"""The lessons' runs: declared in lessons.toml, done by the trainer in child processes, and made into records."""

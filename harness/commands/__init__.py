"""The subcommands of gpt-harness, one file each."""

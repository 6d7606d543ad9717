"""Compare benchmark runs, bisect revisions, and resume an interrupted run."""

"""The report of the lessons' runs, from their records alone."""

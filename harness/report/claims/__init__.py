"""The report of the claims ledger, from the records of a verification run alone."""

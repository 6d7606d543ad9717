"""The sections of the page, the plots and the table rows of a benchmark run."""

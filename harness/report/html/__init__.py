"""The page as one HTML file that can be passed on: no other file, no network, and no script from data."""

"""The kinds of work that arms do: how each builds its call, and how its answer is verified."""

"""Training programs under judgement: what they are, how they are rehearsed, and what they did."""

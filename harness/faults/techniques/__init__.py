"""Right programs of techniques that are more than a GPT, each with its faults and a suite of the same name."""

"""The oracle: GPT-2 as a formula with its variants, Hugging Face's GPT-2, probe weights, and the noise verdict."""

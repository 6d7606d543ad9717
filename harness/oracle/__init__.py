"""What is right: GPT-2 as a formula and its variants, Hugging Face, probe weights, and the noise verdict."""

"""What a pretraining program is made of, one noun a file; `python -m gpt.train` is the program."""

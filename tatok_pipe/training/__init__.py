"""What the trainings of tokenizer and generator have in common."""

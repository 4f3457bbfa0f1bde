"""Taking rows out of a token dataset, so that they stay out."""

"""Whether a token dataset is whole, and what may be done about it where it is not."""

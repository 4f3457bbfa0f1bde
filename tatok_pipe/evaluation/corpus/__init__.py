"""Two token datasets compared: what the suite `corpus` is made of."""

"""Reading a token dataset to train on: sequences, windows, packing, batches, what conditions them."""

"""Two token datasets compared: what their codes, lengths and pairs of images say."""

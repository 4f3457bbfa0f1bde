"""WebDataset shards: tars, compressed or not, and zips of the same files, as samples."""

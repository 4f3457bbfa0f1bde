"""Token datasets in the formats of other loaders, each read back by that loader itself."""

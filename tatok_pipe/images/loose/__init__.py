"""Loose images, in a folder or named by a manifest, as parts that can be read like shards."""

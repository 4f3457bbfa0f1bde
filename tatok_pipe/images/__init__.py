"""Images in: shards to samples, bytes to pixels, and the demo corpus."""

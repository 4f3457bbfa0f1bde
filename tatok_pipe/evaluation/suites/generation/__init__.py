"""Whether drawn images are like real ones: distances of features, diversity, lengths."""

"""Token datasets: the format on disk and the reader."""

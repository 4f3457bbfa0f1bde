"""What entropies are worth: calibration, the bound of the filter, what globals tell of patches."""

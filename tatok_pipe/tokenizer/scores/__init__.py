"""What losing a patch costs: one file a score. `SCORES` in `table` has them by name; none of them needs torch to be
imported, as options do without it."""

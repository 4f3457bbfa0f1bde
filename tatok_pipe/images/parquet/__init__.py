"""Image shards in Parquet, and what has to be checked of a Parquet file before pyarrow reads it."""

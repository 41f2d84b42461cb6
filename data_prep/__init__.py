"""A dataset on disk -> sharded TFRecords."""

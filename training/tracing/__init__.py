"""Parts of training.trace: an index of the training shards, and the search in it."""

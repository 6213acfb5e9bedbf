"""Training text on disk: documents, the split into training and held-out text, and token shards."""

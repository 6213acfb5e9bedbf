"""Parts of training.pretrain: configuration, missing inputs, dry runs, samples and summary."""

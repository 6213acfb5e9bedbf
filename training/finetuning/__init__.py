"""Parts of training.finetune: configuration, data, TRL trainers, checkpoint selection, manifests, GPU memory."""

"""Parts of one optimizer step: precision, loss, optimizer, skipped steps, and the model over processes."""

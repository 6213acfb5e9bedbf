"""Parts of training.tokenizer: counts of pieces, and the comparison with other tokenizers."""

"""Fine-tuning's own modules: what training.finetune, which is the program, is made of."""

"""Tasks of training.evaluate, one module per task, measured on a loaded model and held-out text."""

"""What training.evaluate measures: each module one kind of figure, from a loaded model and held-out text."""

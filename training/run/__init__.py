"""Files of a run folder, and its start, resume and stop."""

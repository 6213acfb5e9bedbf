"""Release models: verified folders for the Hub, model cards, and AI Act documents."""

import os

# Before torch is loaded: waiting threads sleep instead of spinning, which slows down every other program.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

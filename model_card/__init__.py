"""Release models: verified folders for the Hub, model cards, and AI Act documents."""

import os
import sys

# Before torch is loaded: waiting threads sleep instead of spinning, which slows down every other program.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if sys.argv[:1] == ["-m"]:  # python -m model_card.PROGRAM, before the program and its libraries are imported
    from .signals import end_on_signals

    end_on_signals()

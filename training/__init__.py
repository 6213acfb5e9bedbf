"""Pretrain, fine-tune and evaluate language models: programs (`python -m training.PROGRAM`) and their packages."""

import os
import sys
import tempfile

if not sys.stderr.isatty():  # in a log, a progress bar is a line every ten seconds and not ten a second
    os.environ.setdefault("TQDM_MININTERVAL", "10")
# OpenMP threads spin while they wait for each other, which stalls them as soon as another program uses a core.
# torch reads the setting when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Containers may have neither HOME nor an entry for the user, and codecarbon then fails to start.
if os.path.expanduser("~") == "~":
    os.environ["HOME"] = tempfile.gettempdir()

if sys.argv[:1] == ["-m"]:  # python -m training.PROGRAM, before the program and its libraries are imported
    from .common.signals import end_on_signals

    end_on_signals()

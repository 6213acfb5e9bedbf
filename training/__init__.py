"""Pretrain, fine-tune and evaluate language models: programs (`python -m training.PROGRAM`) and their packages."""

import os
import sys

if not sys.stderr.isatty():  # in a log, a progress bar is a line every ten seconds and not ten a second
    os.environ.setdefault("TQDM_MININTERVAL", "10")
# OpenMP threads spin while they wait for each other, which stalls them as soon as another program uses a core.
# torch reads the setting when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if sys.argv[:1] == ["-m"]:  # python -m training.PROGRAM, before the program and its libraries are imported
    from .common.signals import end_on_signals

    end_on_signals()

"""How a Pleias model is made: programs (`python -m training.<program>`) and the few modules they share."""

import os
import sys

if not sys.stderr.isatty():  # in a log, a progress bar is a line every ten seconds and not ten a second
    os.environ.setdefault("TQDM_MININTERVAL", "10")
# OpenMP's threads wait for each other by spinning, which stalls them as soon as another program wants a core. The
# setting is read when torch is loaded, so it stands here, before any import of it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

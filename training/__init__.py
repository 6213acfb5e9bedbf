"""How a Pleias model is made: programs (`python -m training.<program>`) and the few modules they share."""

import os
import sys

if not sys.stderr.isatty():  # in a log, a progress bar is a line every ten seconds and not ten a second
    os.environ.setdefault("TQDM_MININTERVAL", "10")
# OpenMP's threads wait for each other by spinning, many times slower as soon as another program wants a core. Read when
# torch is loaded, so it stands here, before any import of it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

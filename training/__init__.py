"""How a Pleias model is made: programs (`python -m training.<program>`) and the few modules they share."""

import os
import sys

if not sys.stderr.isatty():  # in a log, a progress bar is a line every ten seconds and not ten a second
    os.environ.setdefault("TQDM_MININTERVAL", "10")

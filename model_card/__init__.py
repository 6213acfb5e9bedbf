"""How a Pleias model ships: the release as a folder."""

import os

# Before torch is loaded: threads that wait for each other sleep instead of spinning, which costs every other program.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

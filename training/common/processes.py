"""Worker processes: exit together with their parent."""

import multiprocessing
import os
import threading


def exit_with_parent() -> None:
    """Exit this worker as soon as its parent is gone, even killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()

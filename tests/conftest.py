"""One thread per process, before torch is imported: tests run side by side on small machines."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

"""Read by every Python process of the tests when it starts: garbage is collected seldom, as importing makes none."""

import gc

gc.set_threshold(1_000_000)

"""Evaluate: `python evaluate.py --ckpt=DIR [--data=DATA]`; see commands/evaluate.py."""

import sys

from concertormer_jax.runtime import errors

if __name__ == "__main__":
    errors.exit_on_signals()
    from concertormer_jax.__main__ import run

    run("evaluate", sys.argv[1:])

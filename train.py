"""Train: `python train.py --config=configs/gopro.py --workdir=DIR [--config.key=value]`; see commands/train.py."""

import sys

from concertormer_jax.runtime import errors

if __name__ == "__main__":
    errors.exit_on_signals()
    from concertormer_jax.__main__ import run

    run("train", sys.argv[1:])

"""Train: `python train.py --config=configs/gopro.py --workdir=DIR [--config.key=value]`; see commands/train.py."""

import sys

from concertormer_jax.runtime import interrupts

if __name__ == "__main__":
    interrupts.listen()
    from concertormer_jax.__main__ import run

    run("train", sys.argv[1:])

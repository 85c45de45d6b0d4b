"""Train: `python train.py --config=configs/gopro.py --workdir=DIR [--config.key=value]`.

The same command with the same --workdir goes on where the run ended. On several hosts, start it with --distributed on
each of them.
"""

from concertormer_jax import interrupts  # noqa: F401  (first: it takes Ctrl-C while the rest is imported)

# isort: split

import logging

import jax
from absl import app, flags
from absl import logging as absl_logging

from concertormer_jax import errors
from concertormer_jax.command_line import define_config, parse
from concertormer_jax.devices import join_hosts, prepare_to_compile
from concertormer_jax.training.loop import train

CONFIG = define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run: checkpoints, metrics, samples; may be gs://.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts, one process on each.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_):
    logging.getLogger("jax").setLevel(logging.ERROR)
    absl_logging.set_verbosity(absl_logging.FATAL)  # what Orbax logs as an error it also raises
    with errors.reported():
        prepare_to_compile()
        if DISTRIBUTED.value:
            join_hosts()
        if jax.process_index() == 0:
            print(CONFIG.value)
        train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

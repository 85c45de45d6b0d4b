"""Train: `python train.py --config=configs/gopro.py --workdir=DIR [--config.key=value]`.

The same command with the same --workdir goes on where the run ended. On several hosts, start it with --distributed on
each of them.
"""

import jax
from absl import flags

from concertormer_jax.commands.flags import define_config, parse_with_config, running
from concertormer_jax.runtime.devices import join_hosts, prepare_to_compile
from concertormer_jax.training.trainer import train

CONFIG = define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run: checkpoints, metrics, samples; may be gs://.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts, one process on each.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Run the command described at the top of this file."""
    parse_with_config(__name__)
    with running():
        prepare_to_compile()
        if DISTRIBUTED.value:
            join_hosts()
        if jax.process_index() == 0:
            print(CONFIG.value)
        train(CONFIG.value, WORKDIR.value)

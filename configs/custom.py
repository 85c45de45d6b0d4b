"""Your own pairs, photographs, or both.

    python train.py --config=configs/custom.py --workdir=runs/mine --config.data.source=FOLDER[,FOLDER...] \
        [--config.init_from=CHECKPOINT]

A folder with input/ and target/, blur/ and sharp/ or the like holds pairs; any other holds sharp photographs to blur.
With `init_from` of the full network's converted weights, set --config.model.variant=gopro. One GPU, or a few cores with
a smaller network.
"""

from configs import common


def get_config():
    """The small network on one device, 20,000 steps."""
    config = common.get_config()
    config.model.variant = "lite"
    config.stages.steps = (15_000, 5_000)
    config.stages.crop_px = (128, 256)
    config.stages.batch = (16, 4)
    config.run.checkpoint_every_steps = 1_000
    config.run.log_every_steps = 50
    config.run.cache = True
    return config

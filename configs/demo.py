"""A few minutes on two cores: a small network learns to undo camera shake on the bundled photographs.

make train-demo
"""

from configs import common


def get_config():
    """The demo network, 500 steps."""
    config = common.get_config()
    config.model.variant = "demo"
    config.model.remat = False
    config.data.source = "bundled:photos/train"
    config.stages.steps = (500,)
    config.stages.crop_px = (64,)
    config.stages.batch = (8,)
    config.optimizer.learning_rate = 2e-3
    config.validation.fraction = 0.1
    config.validation.images = 4
    config.validation.crop_px = 128
    config.run.log_every_steps = 40
    config.run.checkpoint_every_steps = 125
    config.run.cache = True
    return config

"""A few minutes on two cores: a small network learns to undo camera shake on the bundled photographs.

make demo
"""

from configs import common


def get_config():
    """The demo network, 320 steps."""
    config = common.get_config()
    config.model.variant = "demo"
    config.data.source = "photos/train"
    config.stages.steps = (320,)
    config.stages.crop_px = (64,)
    config.stages.batch = (16,)
    config.validation.images = 4
    config.validation.crop_px = 128
    config.run.log_every_steps = 20
    config.run.checkpoint_every_steps = 80
    config.run.cache = True
    return config

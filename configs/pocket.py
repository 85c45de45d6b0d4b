"""The small network for laptops, on photographs that are blurred anew and on real pairs.

    python train.py --config=configs/pocket.py:short --workdir=runs/pocket-short DATA
    python train.py --config=configs/pocket.py --workdir=runs/pocket --config.init_from=runs/pocket-short DATA
    python train.py --config=configs/pocket.py:decay --workdir=runs/pocket-decay --config.init_from=runs/pocket DATA

with DATA = --config.data.source=PHOTOS,GOPRO,REDS --config.data.shares=0.6,0.25,0.15. The first command learns to undo
short blurs, which is quick. The second goes on with long ones at a constant learning rate for as long as it is let; the
weights that count are their moving average. The third lets the learning rate fall to zero over its steps, about a tenth
of those of the second: the length of the training need not be known before. PHOTOS holds sharp photographs, GOPRO and
REDS pairs in input/ and target/. Hardware: one CPU core or more, or a GPU. docs/weights.md says what was trained for
how long.

    python train.py --config=configs/pocket.py:finetune --workdir=runs/mine --config.data.source=FOLDER

goes on from the weights that come with this software, for a minute on two cores (--config.stages.steps=2000, longer).
"""

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import BUNDLED_WEIGHTS
from configs import common


def get_config(part: str = "constant"):
    """part: "short", "constant", "decay" or "finetune"."""
    config = common.get_config()
    config.model.variant = "pocket"
    config.model.remat = False
    config.data.source = "bundled:photos/train"
    config.data.blur_min_px = 0.0  # what is sharp must stay so
    config.data.shot_noise = 1e-4
    config.data.read_noise = 7e-4
    config.stages.crop_px = (128,)
    config.stages.batch = (8,)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.beta2 = 0.99
    config.train.ema_decay = 0.999
    config.validation.images = 16
    config.run.log_every_steps = 50
    config.run.checkpoint_every_steps = 250
    config.run.cache = True
    if part == "short":
        config.data.degradation = "shake,frames"
        config.data.blur_max_px = 14.0
        config.stages.steps = (500,)
        config.optimizer.learning_rate = 2e-3
        config.optimizer.constant_steps = 499
        return config
    if part == "finetune":
        config.init_from = BUNDLED_WEIGHTS
        config.data.degradation = "shake"
        config.data.blur_max_px = 14.0
        config.stages.steps = (25,)
        config.optimizer.learning_rate = 1e-4
        config.train.ema_decay = 0.0
        config.validation.images = 4
        config.run.log_every_steps = 5
        return config
    config.data.degradation = "shake,shake,frames,frames,noise"
    config.data.blur_max_px = 24.0
    if part == "constant":
        config.stages.steps = (1_000_000,)
        config.optimizer.constant_steps = 999_999
    elif part == "decay":
        config.stages.steps = (2_000,)
    else:
        raise UserError(f"configs/pocket.py:{part} is unknown; choose short, constant, decay or finetune")
    return config

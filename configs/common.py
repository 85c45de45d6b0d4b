"""Every config key, once, with its meaning and unit; the recipes in this folder change values, never keys.

Any key can be set on the command line: --config.optimizer.learning_rate=3e-4
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The released GoPro recipe without its data."""
    config = ConfigDict()
    config.seed = 0  # of the initial weights, the order of the images and the augmentation
    config.init_from = ""  # checkpoint directory or converted weights to start from; "" for random weights

    config.model = ConfigDict()
    # A name of concertormer_jax.models.VARIANTS or ABLATIONS, or "" when all sizes (width to decoder_heads) are set.
    config.model.variant = "gopro"
    config.model.width = placeholder(int)  # channels of the finest level; None here and below: the variant's
    config.model.encoder_blocks = placeholder(tuple)  # blocks of each level, finest first
    config.model.middle_blocks = placeholder(int)
    config.model.decoder_blocks = placeholder(tuple)  # deepest first
    config.model.encoder_heads = placeholder(tuple)
    config.model.middle_heads = placeholder(int)
    config.model.decoder_heads = placeholder(tuple)
    config.model.refinement_blocks = placeholder(int)  # behind the finest decoder, of Restormer only
    config.model.expansion = placeholder(float)  # hidden channels of a block per channel; whole but for Restormer
    config.model.unshuffle = placeholder(int)  # side of the squares of pixels that are one position of the finest level
    config.model.attention = placeholder(str)  # of Restormer only: transposed or concerto
    config.model.norm_bias = placeholder(bool)  # of Restormer's layer norms
    # What the blocks are made of (models/architecture.py says more); None for the variant's.
    config.model.groups = placeholder(str)  # of the attention, from ops/concerto.py, separated by commas; "" for none
    config.model.communication = placeholder(str)  # CDC: both, spatial, channel or none
    config.model.sca = placeholder(bool)  # simplified channel attention
    config.model.shift = placeholder(bool)  # of every other block's attention
    config.model.block_px = placeholder(int)  # side of the attention's blocks
    config.model.two_stage = placeholder(bool)  # a feed-forward network after the attention, in place of one stage
    config.model.multiscale_input = placeholder(bool)  # the picture enters at every scale
    config.model.skip = placeholder(str)  # cross_attention, sum or concatenation
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16; weights and softmax stay float32
    config.model.remat = True  # recompute each block in the backward pass: far less memory; off where it fits without

    config.data = ConfigDict()
    # Prepared sets (tfds:NAME, made by `python -m concertormer_jax prepare`) and folders, separated by commas. A folder
    # holds pairs in input/ and target/ or folders named alike (data/folders.py), also below it; or else sharp
    # photographs, which are degraded anew for every crop.
    config.data.source = ""
    config.data.data_dir = ""  # where prepared sets are; "" for ~/tensorflow_datasets or $TFDS_DATA_DIR
    config.data.shares = ()  # share of the samples that comes from each folder; () for in proportion to their images
    config.data.flip = True  # mirror at random
    config.data.rotate = True  # turn by quarter turns at random
    # Of photographs: shake, frames, rain, noise, gaussian, bicubic_x2 or bicubic_x4 (data/degrade/). Of several,
    # separated by commas, each crop gets one.
    config.data.degradation = "shake"
    config.data.blur_min_px = 3.0  # shortest path of the camera (shake, frames), in pixels
    config.data.blur_max_px = 14.0  # longest
    config.data.shot_noise = 2e-4  # largest variance at full intensity, in linear light in [0, 1]
    config.data.read_noise = 1e-3  # largest standard deviation, in linear light in [0, 1]
    config.data.noise_sigma = (0.0, 50.0)  # (lowest, highest) standard deviation of gaussian, of values from 0 to 255
    config.data.jpeg_quality = ()  # (lowest, highest) quality of the degraded photographs' JPEG; () for none

    config.stages = ConfigDict()  # one entry for each phase of the training; one learning-rate schedule runs over all
    config.stages.steps = (200_000, 300_000, 100_000)
    config.stages.crop_px = (128, 256, 320)
    config.stages.batch = (64, 16, 8)  # images per step over all devices

    config.train = ConfigDict()
    config.train.fft_weight = 0.1  # of the spectrum's part in the loss
    config.train.accumulation = 1  # parts in which a batch is computed, one after the other
    config.train.ema_decay = 0.0  # of the moving average of the weights, which is then evaluated; 0 for none

    config.optimizer = ConfigDict()  # one cosine over all steps
    config.optimizer.name = "adamw"  # or "muon", which takes matrices along all their directions alike
    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_learning_rate = 1e-7
    config.optimizer.constant_steps = 0  # steps at the learning rate before the cosine begins
    config.optimizer.weight_decay = 1e-3
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.9
    config.optimizer.epsilon = 1e-8
    config.optimizer.clip_norm = 0.01  # largest global norm of the gradient

    config.validation = ConfigDict()
    # As data.source, of prepared sets the split validation, else test; "" holds images of data.source out. What is
    # validated on is left out of the training.
    config.validation.source = ""
    config.validation.fraction = 0.05  # of the images to hold out, whole sequences where names show short ones
    config.validation.images = 32  # at most, evenly spaced
    config.validation.crop_px = 256  # side of the middle crop that is restored

    config.run = ConfigDict()  # keys that do not change the result; they may differ when a run goes on
    config.run.log_every_steps = 100
    config.run.checkpoint_every_steps = 5_000  # validate and save
    config.run.cache = False  # keep decoded images in memory
    config.run.tracker = ""  # wandb, trackio, mlflow, or several separated by commas; "" for none
    config.run.profile_steps = ()  # (first, last) step, counted from 1, of a trace in WORKDIR/profile; () for none
    return config

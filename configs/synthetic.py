"""A small U-Net for the synthetic scenes of data_prep.synthesize at 128x256: five minutes on two CPU cores.

    python -m unet.main --config=configs/synthetic.py --data_dir=data/synthetic

`make demo` runs it. Many small steps on crops and little augmentation are what brings a short run far; the stem makes
the steps cheap.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.num_steps = 2400
    config.global_batch = 4
    config.data.crop = (96, 192)
    config.data.scale = (0.9, 1.25)
    config.data.brightness = 0.05
    config.data.contrast = config.data.saturation = 0.1
    config.data.cache = 'memory'
    config.model.width = 24
    config.model.depth = 4
    config.model.stem = 2
    config.model.norm_momentum = 0.95
    config.optimizer.learning_rate = 4e-3
    config.optimizer.schedule = 'cosine'
    config.optimizer.warmup_steps = 50
    config.eval.every_steps = 1200
    config.eval.batch = 4
    config.eval.best_metric = 'eval/miou_present'  # the scenes lack some of the 19 classes
    config.checkpoint.every_steps = 400
    config.log.every_steps = 100
    return config

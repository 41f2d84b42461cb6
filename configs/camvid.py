"""A small U-Net on CamVid (480x360, 11 classes written as Cityscapes label ids): half an hour on two CPU cores.

    python -m unet.main --config=configs/camvid.py --data_dir=data/camvid

Sequences 0001TP and 0016E5 to train, 0006R0 to score. The README's table has the score.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.num_steps = 1300
    config.global_batch = 4
    config.data.crop = (240, 320)
    config.data.scale = (0.8, 1.4)
    config.data.cache = 'memory'
    config.model.width = 16
    config.model.norm_momentum = 0.95  # 0.99 would leave stale statistics in so short a run
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = 'cosine'
    config.optimizer.warmup_steps = 50
    config.eval.every_steps = 650
    config.eval.best_metric = 'eval/miou_present'  # CamVid has 11 of the 19 classes
    config.checkpoint.every_steps = 250
    return config

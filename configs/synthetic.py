"""A small U-Net for the synthetic scenes of data_prep.synthesize: minutes on two CPU cores. `make demo` runs it.

python -m unet.main --config=configs/synthetic.py --data_dir=data/synthetic
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_steps = 900
    config.global_batch = 8
    config.data.crop = (128, 256)
    config.data.scale = (0.75, 1.5)
    config.data.cache = 'memory'
    config.model.width = 16
    config.model.depth = 4
    config.model.norm_momentum = 0.95
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = 'cosine'
    config.optimizer.warmup_steps = 50
    config.eval.every_steps = 300
    config.eval.batch = 4
    config.eval.best_metric = 'eval/miou_present'  # the scenes lack some of the 19 classes
    config.checkpoint.every_steps = 150
    return config

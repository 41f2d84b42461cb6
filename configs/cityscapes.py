"""U-Net on Cityscapes at full resolution: 19 classes, 512x1024 crops of 2048x1024 images, bfloat16.

    python -m unet.main --config=configs/cityscapes.py --data_dir=data/cityscapes

The schedule follows the best published U-Net on Cityscapes (mmsegmentation, UNet-S5-D16: 512x1024 crops, 16 per batch,
160k iterations of SGD at 0.01 with polynomial decay: 69.1 % mIoU on the validation split). The number this config
reaches has not been measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_steps = 160_000
    config.global_batch = 16
    config.precision = 'bfloat16'
    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = 'polynomial'
    config.optimizer.warmup_steps = 1000
    config.optimizer.weight_decay = 5e-4
    config.optimizer.clip_norm = 5.0
    config.eval.every_steps = 4000
    config.checkpoint.every_steps = 1000
    return config

"""Cityscapes at full resolution: 19 classes, 1024x1024 crops of 2048x1024 images, bfloat16.

    python -m unet.main --config=configs/cityscapes.py --data_dir=data/cityscapes

A U-Net for half the resolution that sees further: a strided stem quarters the cost of everything, six levels and
dilated convolutions at the bottom widen the field of view from 204 to 1593 pixels, and what that saves goes into more
epochs of larger crops, of which half are centred on a class drawn evenly. It is meant to pass 75 % mIoU on the
validation split without pre-training, as U-shaped nets of the same parts do: HarDNet in PaddleSeg 79.0 % (1024x1024
crops, SGD at 0.02, bootstrapped cross entropy), RegSeg 77.8 to 78.9 % (field of view of 3743 pixels, class-uniform
sampling of half the crops). The number that it reaches has not been measured; docs/accuracy.md has what was.
configs/cityscapes_unet.py is the plain U-Net.

21.5 million parameters, 0.71 TFLOP per image and step, 1.4 EFLOP in all: 3 hours on one GPU that sustains 125 TFLOP/s
(40 % of an A100's peak), half an hour on eight at 90 % efficiency. Memory, by the estimate of unet.preflight: 17 GiB
for 16 images on one GPU, 3 GiB for the 2 of each of eight. Such a GPU takes 175 images/s: three to four cores per GPU
decode as many from PNG, fewer from JPEG records (--image_format=jpeg).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.num_steps = 120_000  # 645 epochs
    config.global_batch = 16
    config.precision = 'bfloat16'
    config.data.crop = (1024, 1024)
    config.data.log_scale = True
    config.data.class_uniform = 0.5
    config.data.gamma = 0.3
    config.model.width = 48
    config.model.depth = 6
    config.model.max_width = 384
    config.model.stem = 2
    config.model.context = 'dilated'
    config.loss.cross_entropy = 0.5
    config.loss.ohem = 0.5
    config.loss.auxiliary = 0.4
    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 0.02
    config.optimizer.schedule = 'polynomial'
    config.optimizer.warmup_steps = 1000
    config.optimizer.weight_decay = 5e-4
    config.optimizer.clip_norm = 5.0
    config.optimizer.ema = 0.9998
    config.eval.every_steps = 4000
    config.checkpoint.every_steps = 1000
    return config

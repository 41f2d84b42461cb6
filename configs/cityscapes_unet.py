"""The plain U-Net on Cityscapes at full resolution: 19 classes, 512x1024 crops of 2048x1024 images, bfloat16.

    python -m unet.main --config=configs/cityscapes_unet.py --data_dir=data/cityscapes

Aims above the best published U-Net (mmsegmentation, UNet-S5-D16: 69.1 % mIoU on the validation split, 71.05 % with
scales and mirror images). Kept from it: 160k steps of 16 crops of 512x1024, zoomed by 0.5 to 2, SGD at 0.01 falling to
zero, batch statistics over all 16, an auxiliary head of weight 0.4. Added: a running mean of the weights is what is
scored, which smooths the last steps' noise; a warm-up and a limit on the gradient's norm, against a start that bfloat16
makes rougher. The number that it reaches has not been measured.

31.1 million parameters, 2.4 TFLOP per image and step, 6.1 EFLOP in all: 14 hours on one GPU that sustains 125 TFLOP/s
(40 % of an A100's peak), 2 hours on eight at 90 % efficiency. Memory, by the estimate of unet.preflight: 34 GiB for 16
images on one GPU, 5 GiB for the 2 of each of eight; runtime.recompute halves it, runtime.microbatches=0 fits the rest.
JPEG records (--image_format=jpeg) or several cores per GPU keep such GPUs fed.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.num_steps = 160_000
    config.global_batch = 16
    config.precision = 'bfloat16'
    config.loss.auxiliary = 0.4
    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = 'polynomial'
    config.optimizer.warmup_steps = 1000
    config.optimizer.weight_decay = 5e-4
    config.optimizer.clip_norm = 5.0
    config.optimizer.ema = 0.9998
    config.eval.every_steps = 4000
    config.checkpoint.every_steps = 1000
    return config

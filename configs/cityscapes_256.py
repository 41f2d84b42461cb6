"""The setting of the 2021 blog post that this project comes from: U-Net on Cityscapes at 256x256, all 34 label ids.

    python -m unet.main --config=configs/cityscapes_256.py --data_dir=data/cityscapes

Image and label are resized to 280x280 by nearest neighbour and cropped to 256x256 at random, 32 images per step, Adam
at 1e-3, 60 epochs of 2975 images. It differs where the post was mistaken: augmentation is drawn anew in every epoch,
labels are never interpolated, every validation image is scored, at its original size, and void classes do not count in
the mean. For the post's own score, the mean over all 34 ids, see eval/miou_all_ids.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.num_steps = 60 * 2975 // 32
    config.global_batch = 32
    config.labels = 'label_ids'
    config.data.resize = (280, 280)
    config.data.resize_method = 'nearest'
    config.data.crop = (256, 256)
    config.data.scale = (1.0, 1.0)
    config.data.brightness = config.data.contrast = config.data.saturation = 0.0
    config.data.cache = 'memory'  # 2975 images of 280x280: 0.9 GB
    config.eval.resize = (256, 256)
    config.eval.batch = 8
    config.eval.every_steps = 465  # five epochs
    config.checkpoint.every_steps = 465
    return config

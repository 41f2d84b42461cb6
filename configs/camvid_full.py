"""All 367 images of CamVid's usual training set, the drives 0001TP, 0016E5 and 0006R0, for a GPU.

    python -m unet.main --config=configs/camvid_full.py --data_dir=data/camvid

The recipe of configs/camvid.py with a wider, deeper network and 300 epochs. It trains on the validation split
too, so that the scores of the run are of images it has seen: another drive has to judge it.

38 million parameters, 0.17 TFLOP per image and step, 0.018 EFLOP in all: at 100 TFLOP/s three minutes, start and
evaluations not counted. Not measured on a GPU yet.
"""

from ml_collections import ConfigDict

from configs import camvid


def get_config() -> ConfigDict:
    config = camvid.get_config()
    config.data.train_splits = ('train', 'validation')
    config.num_steps = 13_760  # 300 epochs of 367 images
    config.data.crop = (320, 448)
    config.model.width = 64
    config.model.depth = 6
    config.model.max_width = 512
    config.model.norm_momentum = 0.99
    config.optimizer.learning_rate = 1e-3
    config.optimizer.ema = 0.999
    config.eval.every_steps = 2752
    config.checkpoint.every_steps = 1000
    return config

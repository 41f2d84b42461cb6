"""Every option on one page, with its unit and its reason. Other configs import this one and set a few fields.

Change a field from the command line with --config.<field>=<value>, e.g. --config.optimizer.learning_rate=3e-4.
A size is (height, width) in pixels. A step is one update of the weights.
"""

from ml_collections import ConfigDict

from configs import validation


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.num_steps = 40_000
    config.global_batch = 16  # images per step, over all devices of all hosts: results do not depend on their number
    # Workdir of another run to start from, by its best checkpoint. What does not fit is listed and left as it is, e.g.
    # the head of a model for other classes.
    config.init_from = ''
    config.seed = 2019  # of weights, order and augmentation
    # 'float32', 'bfloat16', 'float16' (with a dynamic loss scale), 'float64' (to prove equalities). Weights, loss,
    # normalisation statistics and metrics stay in at least float32.
    config.precision = 'float32'
    config.labels = 'train_ids'  # what is learnt: 'train_ids' (the scored classes) or 'label_ids' (every id, void too)

    config.data = data = ConfigDict()
    data.train_splits = ('train',)  # read as one, e.g. ('train', 'train_extra')
    data.eval_split = 'validation'
    data.resize = (0, 0)  # image and label are first resized to this; (0, 0): they stay as stored
    data.resize_method = 'bilinear'  # of images, when data.resize or eval.resize is set: 'bilinear' or 'nearest'
    data.crop = (512, 1024)  # what the network is trained on
    data.scale = (0.5, 2.0)  # random zoom before the crop, uniform between the two; below 1 shows more, smaller
    data.flip = 0.5  # probability of a left-right flip
    data.brightness = 0.125  # added: up to this share of full scale either way
    data.contrast = 0.25  # contrast and saturation are multiplied by 1 - x to 1 + x
    data.saturation = 0.25
    # Keep the decoded (and resized) training images: 'memory', for small ones; 'disk', a file in $TMPDIR (a local disk)
    # that goes with the process, for those that take longer to decode than to read: 4 bytes per pixel, 25 GB for
    # Cityscapes. Augmentation comes after it.
    data.cache = 'none'

    config.model = model = ConfigDict()
    model.width = 64  # channels of the first level; each level down has twice as many
    model.depth = 5  # levels, 3 to 6; the image is halved depth - 1 times
    model.skip = (
        'concat'  # how a level's encoder output joins its decoder: 'concat' (U-Net) or 'add' (FCN; less memory)
    )
    model.padding = 'same'  # 'same': output as large as the input; 'valid': the original unpadded U-Net (572 -> 388)
    model.up = 'transpose'  # doubling in the decoder: 'transpose' (convolution) or 'resize' (bilinear, 1x1 convolution)
    model.residual = False  # add the input of a level to what its two convolutions make of it
    model.dropout = 0.0  # probability of leaving out a channel of the lowest level in training
    model.norm = 'batch'  # 'batch' (over the global batch), 'group' (each image by itself) or 'none'
    model.norm_momentum = 0.99  # of the running statistics that evaluation uses; lower it for runs below 1000 steps

    config.loss = loss = ConfigDict()  # the sum of these, each times its weight; unet/loss.py has the formulas
    loss.cross_entropy = 1.0
    loss.focal = 0.0
    loss.hard_pixels = 0.0  # online hard example mining
    loss.dice = 0.0
    # The same losses, times this, of a second head on the decoder's second level (deep supervision); 0: no such head.
    loss.auxiliary = 0.0
    loss.class_weights = ()  # of the cross entropy, one per class; (): all 1
    loss.balanced = False  # class weights from the training pixels of each class instead
    loss.label_smoothing = 0.0
    loss.focal_gamma = 2.0
    loss.hard_threshold = 0.7  # pixels whose true class has less probability than this are hard
    loss.hard_least = 0.1  # share of each image's pixels that counts as hard at the least

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = 'adam'  # 'adam', 'adamw' or 'sgd' (momentum)
    optimizer.learning_rate = 1e-3  # peak
    # With another global batch the learning rate is multiplied by ('linear') or by the square root of ('sqrt')
    # global_batch / reference_batch; 'none': taken as it is.
    optimizer.batch_scaling = 'none'
    optimizer.reference_batch = 16
    optimizer.schedule = 'constant'  # after the warm-up: 'constant', 'polynomial' (power 0.9) or 'cosine', both to zero
    optimizer.warmup_steps = 0  # linear from zero
    optimizer.momentum = 0.9  # of 'sgd'
    optimizer.weight_decay = 0.0  # of the kernels, never of biases or normalisation; decoupled under 'adamw'
    optimizer.ema = 0.0  # decay per step of a running mean of the weights, used wherever the model is; 0: none
    optimizer.clip_norm = 0.0  # largest norm of the whole gradient, after it is summed over devices; 0: no limit

    config.eval = evaluation = ConfigDict()
    evaluation.every_steps = 2000  # and after the last step
    evaluation.batch = 1  # images per device, all of one size
    evaluation.resize = (0, 0)  # size the network sees; its output is resized back and scored at the original size
    evaluation.best_metric = 'eval/miou'
    evaluation.pictures = 4  # validation images drawn at each evaluation

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 1000  # and after the last step, and when asked to stop
    checkpoint.keep = 2  # latest checkpoints kept, beside the best

    config.log = log = ConfigDict()
    log.every_steps = 50

    config.profile = profile = ConfigDict()
    profile.steps = (0, 0)  # a profiler trace of the steps after the first number up to the second, for TensorBoard

    config.runtime = runtime = ConfigDict()  # how it is computed; fields here do not change what is learnt
    runtime.virtual_devices = 0  # split the CPU into this many devices; 0: all GPUs, or the CPU where there is none
    runtime.deterministic = False  # bit-identical reruns, at some cost in speed on GPUs
    # XLA: 'on', 'off', or 'auto': the step of one device; predictions on a GPU, and on a CPU in bfloat16.
    runtime.jit_compile = 'auto'
    # Compute each level's activations again in the backward pass instead of keeping them: half the memory, a third more
    # time, the same results.
    runtime.recompute = False
    # A device's share of the batch is computed in this many parts, one after the other, with one all-reduce and one
    # update: less memory, the same gradient. Batch statistics are then taken over a part (on all devices). 0: the
    # smallest number that fits the memory is found before the first step.
    runtime.microbatches = 1
    runtime.steps_per_call = 1  # steps per call into TensorFlow; a request to stop is answered between calls
    # A request to stop is answered within this time, or the run ends without the step under way. Keep it below what the
    # cluster allows: 30 s by default in Slurm (KillWait) and Kubernetes.
    runtime.grace_seconds = 25.0
    runtime.stall_seconds = 1800.0  # a run that completes no step for so long ends itself; compilation counts
    runtime.peer_seconds = 120.0  # how long workers wait for each other at the start, and for a sign of life

    return config


def validate(config: ConfigDict) -> list[str]:
    """What cannot work about a config, see `validation.validate`."""
    return validation.validate(config)

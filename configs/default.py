"""Every option on one page, with its unit and its reason. Other configs import this one and set a few fields.

Change a field from the command line with --config.<field>=<value>, e.g. --config.optimizer.learning_rate=3e-4.
A size is (height, width) in pixels. A step is one update of the weights.
"""

import math

from ml_collections import ConfigDict


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
    # host:port of each unet.data_server that makes the training examples, where this host's cores cannot keep its GPUs
    # busy: 2.1 MB per 512x1024 example come over the network. The same examples; the cache is then the servers'.
    data.servers = ()

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


_CHOICES = {
    'precision': ('float32', 'bfloat16', 'float16', 'float64'),
    'labels': ('train_ids', 'label_ids'),
    'data.resize_method': ('bilinear', 'nearest'),
    'data.cache': ('none', 'memory', 'disk'),
    'model.skip': ('concat', 'add'),
    'model.padding': ('same', 'valid'),
    'model.up': ('transpose', 'resize'),
    'model.norm': ('batch', 'group', 'none'),
    'optimizer.name': ('adam', 'adamw', 'sgd'),
    'optimizer.batch_scaling': ('none', 'sqrt', 'linear'),
    'optimizer.schedule': ('constant', 'polynomial', 'cosine'),
    'eval.best_metric': ('eval/miou', 'eval/miou_present', 'eval/miou_all_ids', 'eval/accuracy'),
    'runtime.jit_compile': ('auto', 'on', 'off'),
}
_NAMES = ('data.train_splits', 'data.servers')  # the tuples of strings; others hold numbers
_AT_LEAST = {
    'num_steps': 1,
    'global_batch': 1,
    'seed': 0,
    'data.flip': 0,
    'data.brightness': 0,
    'data.contrast': 0,
    'data.saturation': 0,
    'model.width': 1,
    'model.depth': 3,
    'model.norm_momentum': 0,
    'model.dropout': 0,
    'loss.cross_entropy': 0,
    'loss.focal': 0,
    'loss.hard_pixels': 0,
    'loss.dice': 0,
    'loss.auxiliary': 0,
    'loss.label_smoothing': 0,
    'loss.focal_gamma': 0,
    'loss.hard_threshold': 0.01,
    'loss.hard_least': 0,
    'optimizer.learning_rate': 0,
    'optimizer.reference_batch': 1,
    'optimizer.warmup_steps': 0,
    'optimizer.momentum': 0,
    'optimizer.weight_decay': 0,
    'optimizer.clip_norm': 0,
    'optimizer.ema': 0,
    'eval.every_steps': 1,
    'eval.batch': 1,
    'eval.pictures': 0,
    'checkpoint.every_steps': 1,
    'checkpoint.keep': 1,
    'log.every_steps': 1,
    'runtime.virtual_devices': 0,
    'runtime.steps_per_call': 1,
    'runtime.microbatches': 0,
    'runtime.grace_seconds': 1,
    'runtime.stall_seconds': 1,
    'runtime.peer_seconds': 1,
}
_AT_MOST = {
    'seed': 2**32 - 1,
    'data.flip': 1,
    'data.contrast': 1,
    'data.saturation': 1,
    'model.depth': 6,
    'model.norm_momentum': 1,
    'model.dropout': 0.95,
    'loss.label_smoothing': 1,
    'optimizer.momentum': 1,
    'optimizer.ema': 1,
    'loss.hard_threshold': 1,
    'loss.hard_least': 1,
}


def validate(config: ConfigDict) -> list[str]:
    """What cannot work about a config, one line each with value, limit and remedy; an empty list if all is well.

    Launchers call it before they submit and the trainer before it starts; it needs no TensorFlow.
    """
    fields = flatten(config)
    known = flatten(get_config())
    problems = [f'config.{name}: no such field' for name in fields if name not in known]
    problems += [f'config.{name}: missing' for name in known if name not in fields]
    for name, value in fields.items():
        for part in value if isinstance(value, tuple) else (value,):
            if name in _NAMES and not isinstance(part, str):
                problems.append(f"config.{name}={value}: must be names in quotes, e.g. ('{part}',)")
            elif isinstance(value, tuple) and name not in _NAMES and not isinstance(part, int | float):
                problems.append(f'config.{name}={value}: {part!r} is no number')
            elif isinstance(part, float) and not math.isfinite(part):
                problems.append(f'config.{name}={value}: must be finite')
    if problems:
        return problems
    for name, choices in _CHOICES.items():
        if fields[name] not in choices:
            problems.append(f'config.{name}={fields[name]!r}: choose one of {", ".join(choices)}')
    for name, least in _AT_LEAST.items():
        if fields[name] < least:
            problems.append(f'config.{name}={fields[name]}: must be at least {least}')
    for name, most in _AT_MOST.items():
        if fields[name] > most:
            problems.append(f'config.{name}={fields[name]}: must be at most {most}')
    for name in ('data.resize', 'data.crop', 'eval.resize'):
        if not _two_integers(fields[name]) or min(fields[name]) < (name == 'data.crop'):
            problems.append(f'config.{name}={fields[name]}: must be (height, width) in whole pixels')
        elif any(fields[name]) != all(fields[name]):
            problems.append(f'config.{name}={fields[name]}: give both height and width, or (0, 0) for neither')
    scale = fields['data.scale']
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        problems.append(f'config.data.scale={scale}: must be (smallest, largest), both above 0')
    if not any(fields[f'loss.{name}'] > 0 for name in ('cross_entropy', 'focal', 'hard_pixels', 'dice')):
        problems.append('config.loss: give at least one loss a weight above 0')
    weights = fields['loss.class_weights']
    if weights and not (min(weights) >= 0 < max(weights)):
        problems.append(f'config.loss.class_weights={weights}: none may be below 0, and not all of them 0')
    profiled = fields['profile.steps']
    if not _two_integers(profiled) or not 0 <= profiled[0] <= profiled[1]:
        problems.append(f'config.profile.steps={profiled}: must be (after this step, up to this step)')
    elif profiled[1] > config.num_steps:
        problems.append(f'config.profile.steps={profiled}: the run ends at step {config.num_steps} (config.num_steps)')
    if not config.data.train_splits:
        problems.append('config.data.train_splits: name at least one split')
    if len({*config.data.train_splits}) < len(config.data.train_splits):
        problems.append(f'config.data.train_splits={config.data.train_splits}: name each split once')
    for address in config.data.servers:
        if not _is_address(address):
            problems.append(f'config.data.servers: {address!r} is no host:port, e.g. 10.0.0.2:5050')
    return problems or _crop_problems(config.data.crop, config.model.depth, config.model.padding)


def _two_integers(values: tuple) -> bool:
    return len(values) == 2 and all(isinstance(value, int) for value in values)


def _is_address(text: object) -> bool:
    host, _, port = str(text).rpartition(':')
    return bool(host.strip('[]')) and '/' not in host and port.isdecimal() and 0 < int(port) < 1 << 16


def _crop_problems(crop: tuple[int, int], depth: int, padding: str) -> list[str]:
    for side in crop:
        usable = [size for size in range(max(side - 64, 1), side + 65) if output_size(size, depth, padding)]
        if side not in usable:
            nearest = sorted(usable, key=lambda size: abs(size - side))[:2]
            suffix = 'unpadded network' if padding == 'valid' else 'network'
            return [
                f'config.data.crop={tuple(crop)}: a {suffix} of depth {depth} takes no input of {side} pixels; '
                + (f'the nearest it takes are {nearest}' if nearest else 'make it larger')
            ]
    return []


def output_size(size: int, depth: int, padding: str) -> int:
    """Pixels along one side of the U-Net's output for an input of `size`; 0 if the network takes no such input.

    Every pooling needs an even size. An unpadded network (padding 'valid') loses 4 pixels per level on the way down and
    again on the way up, e.g. 572 -> 388 at depth 5 (https://arxiv.org/abs/1505.04597, figure 1).
    """
    loss = 4 if padding == 'valid' else 0
    for _ in range(depth - 1):
        size -= loss
        if size <= 0 or size % 2:
            return 0
        size //= 2
    size -= loss
    for _ in range(depth - 1):
        size = 2 * size - loss
    return max(size, 0)


def flatten(config: ConfigDict, prefix: str = '') -> dict[str, object]:
    """Field values by dotted name: {'data.crop': (512, 1024), ...}."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            fields |= flatten(value, f'{prefix}{name}.')
        else:
            fields[prefix + name] = tuple(value) if isinstance(value, list) else value
    return fields

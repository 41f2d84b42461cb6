"""What cannot work about a config, found without TensorFlow."""

import math

from ml_collections import ConfigDict

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


_NAMES = ('data.train_splits',)  # the tuples of strings; others hold numbers


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
    from configs import default  # which imports this module

    known = flatten(default.get_config())
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
    return problems or _crop_problems(config.data.crop, config.model.depth, config.model.padding)


def _two_integers(values: tuple) -> bool:
    return len(values) == 2 and all(isinstance(value, int) for value in values)


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

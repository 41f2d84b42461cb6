import importlib
import pathlib

import pytest

from configs import default

NAMES = sorted(
    path.stem
    for path in pathlib.Path(default.__file__).parent.glob('*.py')
    if path.stem not in ('__init__', 'validation')
)


@pytest.mark.parametrize('name', NAMES)
def test_every_config_is_valid(name):
    assert default.validate(importlib.import_module(f'configs.{name}').get_config()) == []


def test_a_config_sets_only_fields_of_the_default():
    config = default.get_config()
    with config.unlocked():
        config.data.crops = (1, 1)
    assert default.validate(config) == ['config.data.crops: no such field']


def test_the_blog_posts_setting():
    config = importlib.import_module('configs.cityscapes_256').get_config()
    assert (config.global_batch, config.optimizer.name, config.optimizer.learning_rate) == (32, 'adam', 1e-3)
    assert (config.model.width, config.model.depth, config.model.skip, config.model.padding) == (
        64,
        5,
        'concat',
        'same',
    )
    assert (config.data.resize, config.data.crop, config.eval.resize) == ((280, 280), (256, 256), (256, 256))
    assert (config.labels, config.seed, config.num_steps) == ('label_ids', 2019, 5578)


@pytest.mark.parametrize(
    'field, value, text',
    [
        ('global_batch', 0, 'at least 1'),
        ('data.flip', 1.5, 'at most 1'),
        ('data.scale', (2.0, 1.0), 'smallest'),
        ('data.crop', (100, 100), '[96, 112]'),
        ('data.train_splits', (), 'at least one'),
        ('data.train_splits', ('train', 'train'), 'once'),
        ('eval.resize', (128, 0), 'both height and width'),
        ('optimizer.learning_rate', float('nan'), 'finite'),
        ('optimizer.learning_rate', float('inf'), 'finite'),
        ('data.scale', (0.5, 'a'), 'no number'),
        ('data.crop', (48.0, 96), 'whole pixels'),
        ('data.train_splits', (1,), 'names in quotes'),
        ('profile.steps', (2, 50_000), 'ends at step 40000'),
        ('precision', 'fp16', 'float16'),
        ('seed', 2**32, 'at most 4294967295'),
        ('optimizer.beta2', 1.0, 'below 1'),
        ('optimizer.epsilon', 0.0, 'at least 1e-15'),
        ('loss.class_weights', (0.0, 0.0), 'not all of them 0'),
        ('loss.class_weights', (2.0, -1.0), 'below 0'),
    ],
)
def test_what_cannot_work_is_named(field, value, text):
    config = default.get_config()
    config.update_from_flattened_dict({field: value})
    (problem,) = default.validate(config)
    assert field in problem and text in problem

import pytest

from configs import default, validation


def test_a_config_of_an_older_version_is_brought_up_to_date():
    written = validation.flatten(default.get_config()) | {'data.servers': ('10.0.0.2:5050',)}
    for new, old in (('loss.ohem', 'hard_pixels'), ('loss.ohem_threshold', 'hard_threshold')):
        written[f'loss.{old}'] = written.pop(new) / 2 + 0.25
    del written['optimizer.beta1'], written['optimizer.epsilon']
    values, notes = validation.bring_up_to_date(written, default.FIELDS)
    assert values.keys() == default.FIELDS.keys()
    assert (values['loss.ohem'], values['loss.ohem_threshold'], values['optimizer.beta1']) == (0.25, 0.6, 0.9)
    assert len(notes) == 4
    assert any('loss.hard_pixels is called loss.ohem now' in note for note in notes)
    assert any('data.servers is gone' in note for note in notes)
    assert any('optimizer.beta1=0.9, optimizer.epsilon=1e-07' in note for note in notes)
    assert validation.bring_up_to_date(values, default.FIELDS) == (values, [])


def test_nested_is_the_opposite_of_flatten():
    config = default.get_config()
    assert validation.nested(validation.flatten(config)) == config


@pytest.mark.parametrize(
    'given, current',
    [
        ('--config.loss.hard_pixels=1', '--config.loss.ohem=1'),
        ('--config.loss.hard_least 0.2', '--config.loss.ohem_min_fraction 0.2'),
        ('-config.loss.hard_threshold=0.5 --config.seed=1', '-config.loss.ohem_threshold=0.5 --config.seed=1'),
        ('--config.data.servers=a:1 --config.seed=1', '--config.seed=1'),
        ('--config.data.servers a:1 --config.seed 1', '--config.seed 1'),
    ],
)
def test_fields_on_a_command_line_get_the_names_of_today(given, current):
    arguments, notes = validation.bring_arguments_up_to_date(given.split())
    assert arguments == current.split() and len(notes) == 1
    assert validation.bring_arguments_up_to_date(arguments) == (arguments, [])


@pytest.mark.parametrize('padding, nearest', [('same', '[96, 112]'), ('valid', '[188, 204]')])
def test_the_nearest_usable_sizes_are_named(padding, nearest):
    text = validation.input_size_problem((512 if padding == 'same' else 572, 100), 5, padding)
    assert '100 pixels' in text and nearest in text
    assert not validation.input_size_problem((572, 572), 5, 'valid')

"""What the time of a run went into, over starts that were stopped and killed."""

import json

import pytest

from unet.training import wall_time


def _line(started, now, step, **seconds):
    return {'started': started, 'now': now, 'step': step} | dict.fromkeys(wall_time.KINDS, 0.0) | seconds


def test_repeated_steps_and_what_is_no_training_do_not_count(tmp_path):
    lines = [
        _line(1000.0, 1010.0, 0, starting=10.0),
        _line(1000.0, 1030.0, 10, starting=10.0, training=20.0),
        _line(1000.0, 1080.0, 20, starting=10.0, training=50.0, evaluating=15.0, saving=5.0),  # and killed
        _line(1100.0, 1110.0, 15, starting=10.0),  # 5 of the 10 steps that took 30 s are taken again
        _line(1100.0, 1200.0, 40, starting=10.0, training=80.0, saving=6.0, other=4.0),
    ]
    text = '\n'.join(map(json.dumps, lines[:3])) + '\n{"started": 1000.0, "no\n' + '\n'.join(map(json.dumps, lines[3:]))
    (tmp_path / wall_time.FILE).write_text(text)
    wall, shares = wall_time.shares(tmp_path)
    assert wall == 200 and sum(shares.values()) == pytest.approx(1)
    assert {name: round(200 * share, 6) for name, share in shares.items()} == {
        'training that counts': 20 + 15 + 80,
        'repeated steps': 15,
        'starts': 20,
        'evaluations': 15,
        'saves': 11,
        'other': 4,
        'not running': 20,
    }
    assert wall_time.shares(tmp_path / 'nothing') is None


def test_every_second_is_of_one_kind(tmp_path):
    for step in (0, 3):
        clock = wall_time.Clock(tmp_path, step=step, started=0.0)
        with clock.spent_on('training'):
            clock.first_steps_done()
        with clock.spent_on('evaluating'), clock.spent_on('saving'):
            pass
        clock.record(step + 4)
    with (tmp_path / wall_time.FILE).open('a') as file:
        file.write('{"started": 0')  # killed
    lines = [json.loads(line) for line in (tmp_path / wall_time.FILE).read_text().splitlines()[:5] if line]
    assert [line['step'] for line in lines] == [0, 4, 3, 7]
    for line in lines:
        seconds = {kind: line[kind] for kind in wall_time.KINDS}
        assert sum(seconds.values()) == pytest.approx(line['now'], rel=1e-6)  # since 1970
        assert seconds['starting'] == pytest.approx(line['now'], rel=1e-6)

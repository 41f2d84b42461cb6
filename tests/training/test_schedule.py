"""Where a run comes round, written out."""

from unet.training import schedule

EVERY = {'log_every': 4, 'eval_every': 6, 'save_every': 5}


def steps(start, num_steps, what='step', **fields):
    found = schedule.boundaries(start, num_steps, **(EVERY | fields))
    return [boundary.step for boundary in found if what == 'step' or getattr(boundary, what)]


def test_all_that_is_due_is_due_at_its_multiples_and_at_the_end():
    assert steps(0, 13) == [0, 4, 5, 6, 8, 10, 12, 13]
    assert steps(0, 13, 'log') == [4, 8, 12, 13]
    assert steps(0, 13, 'evaluate') == [6, 12, 13]
    assert steps(0, 13, 'save') == [5, 10, 13]


def test_a_run_that_goes_on_first_does_what_was_due_where_it_stopped():
    assert steps(6, 13) == [6, 8, 10, 12, 13]
    assert steps(6, 13, 'evaluate') == [6, 12, 13]
    assert steps(13, 13) == steps(13, 13, 'evaluate') == [13]


def test_a_trace_begins_and_ends_at_boundaries_of_its_own():
    assert steps(0, 13, profile=(7, 9)) == [0, 4, 5, 6, 7, 8, 9, 10, 12, 13]
    assert steps(0, 13, 'start_profile', profile=(7, 9)) == [7]
    assert steps(8, 13, 'start_profile', profile=(7, 9)) == []
    assert steps(8, 13, 'stop_profile', profile=(7, 9)) == [9]
    assert steps(0, 13, 'start_profile', profile=(0, 2)) == [0]

"""Options of a prediction, on their way through the file of an evaluation."""

import dataclasses
import json

from unet.inference import options


def test_options_survive_the_file_of_an_evaluation():
    for chosen in (options.WHOLE_IMAGE, options.InferenceOptions((32, 64), 0.5, (0.5, 1.0), True)):
        result = json.loads(json.dumps({'inference': dataclasses.asdict(chosen)}))
        assert options.of_evaluation(result) == chosen
    assert options.of_evaluation({}) == options.WHOLE_IMAGE


def test_files_of_earlier_evaluations_are_read():
    looks = {'scales': [0.5, 1.0], 'flip': True, 'window': [32, 64], 'overlap': 0.5}
    assert options.of_evaluation({'looks': looks}) == options.InferenceOptions((32, 64), 0.5, (0.5, 1.0), True)
    looks = {'scales': [1.0], 'flip': False, 'tile': [100, 76]}
    assert options.of_evaluation({'looks': looks}) == options.InferenceOptions((100, 76))

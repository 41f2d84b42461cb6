import json
import shlex

import pytest

from data_prep import records
from launch import command, entry, record_folder
from tests import tiny


def training(folder):
    return records.read_split(folder, 'train')


def launchers(folder):
    return command.check_data(str(folder), ('train', 'validation'), workers=1)


def status(judge, folder) -> int:
    """What ends a program that is given the folder."""
    try:
        judge(folder)
    except entry.UserError as error:
        return error.status
    return entry.OK


@pytest.mark.parametrize('judge', [training, launchers])
def test_the_plan_says_whether_a_folder_is_finished(tmp_path, judge):
    folder = tmp_path / 'records'
    assert status(judge, folder) == entry.MISSING_INPUT
    (folder / record_folder.BUILDING).mkdir(parents=True)  # a build was killed before it wrote its plan
    assert status(judge, folder) == entry.MISSING_INPUT
    tiny.write_folder(folder, train=tiny.scenes(2), validation=tiny.scenes(2))
    assert status(judge, folder) == entry.OK  # a build was killed after it removed its plan
    (folder / record_folder.PLAN).touch()
    assert status(judge, folder) == entry.BAD_DATA


@pytest.mark.parametrize('name', ["it's $HOME", 'a b;c'])
def test_the_command_that_makes_it_is_quoted(tmp_path, name):
    with pytest.raises(entry.UserError) as failure:
        record_folder.check_complete(tmp_path / name)
    words = shlex.split(str(failure.value)[str(failure.value).index('python -m') :])
    assert words[-1] == f'--data_dir={tmp_path / name}'


@pytest.mark.parametrize('judge', [training, launchers])
@pytest.mark.parametrize('info', [[], {}, {'splits': [{'name': 'train'}]}, {'splits': [{'shardLengths': ['x']}]}])
def test_metadata_of_another_form_is_named(tmp_path, judge, info):
    (tmp_path / record_folder.DATASET_INFO).write_text(json.dumps(info))
    assert status(judge, tmp_path) == entry.BAD_DATA


def test_launchers_say_what_to_do_if_the_cluster_alone_sees_the_folder(tmp_path):
    with pytest.raises(entry.UserError, match='--data_elsewhere'):
        launchers(tmp_path)
    with pytest.raises(entry.UserError, match='no dataset here') as raised:
        training(tmp_path)
    assert '--data_elsewhere' not in str(raised.value)

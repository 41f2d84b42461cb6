"""The program itself, on synthetic scenes with instances, against the official evaluator and across processes."""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from configs import default
from data_prep import labels, records, synthetic_scene
from launch import entry, files
from tests import official, tiny, trees
from tests.launch.test_files import AS_ROOT, as_nameless
from unet.evaluation import instance_iou, submission
from unet.inference import options

SIZE = (64, 128)
NAMES = (
    'dataset/leftImg8bit/val/ulm/{}_leftImg8bit.png',
    'dataset/gtFine/val/ulm/{}_gtFine_labelIds.png',
    'dataset/gtFine/val/ulm/{}_gtFine_instanceIds.png',
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A dataset in the Cityscapes layout, and records of it; the split test has no labels."""
    root = tmp_path_factory.mktemp('data')
    for number in range(5):
        scene = synthetic_scene.draw(SIZE, np.random.default_rng(number))
        stem = f'ulm_{number:06d}_000019'
        for name, array in zip(NAMES, scene, strict=True):
            trees.write(root, name.format(stem), tiny.png(array))
    for stem in ('berlin_000000_000019', 'berlin_000001_000019', 'bonn_000000_000019'):
        image, _ = tiny.scene((50, 70), len(stem))
        trees.write(root, f'dataset/leftImg8bit/test/{stem.split("_")[0]}/{stem}_leftImg8bit.png', tiny.png(image))
    trees.build_here(root / 'dataset', root / 'records')
    return root


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory, data):
    """What is learnt -> a workdir whose checkpoint predicts a bit of everything, some of it right: the last layer of an
    untrained model, fitted to the split by least squares."""
    import keras
    import tensorflow as tf

    from unet.data import input_pipeline
    from unet.models import build as model_build
    from unet.models import preprocess
    from unet.training import checkpoint, train_state, workdir

    split = records.read_split(data / 'records', 'validation')
    examples = list(input_pipeline.eval_dataset(input_pipeline.Reader(split), np.arange(len(split))[None]))[0]

    found = {}
    for learnt in ('train_ids', 'label_ids'):
        config = default.get_config()
        config.labels, config.model.width, config.model.depth, config.eval.batch = learnt, 8, 3, 2
        run = tmp_path_factory.mktemp(learnt)
        workdir.write_config(run, config)
        files.write_atomically(run / labels.FILE, labels.to_json(labels.CITYSCAPES))
        model = model_build.build_model(config, labels.CITYSCAPES, replicas=1)
        head = model.layers[-1]
        features = keras.Model(model.input, head.input)(preprocess.normalize(examples['image'])).numpy()
        features = np.append(features, np.ones_like(features[..., :1]), -1).reshape(-1, features.shape[-1] + 1)
        wanted = model_build.class_of_id(learnt, labels.CITYSCAPES)[examples['label'].numpy().ravel()]
        one_hot = np.eye(head.bias.shape[0])[np.minimum(wanted, head.bias.shape[0] - 1)]
        one_hot /= np.maximum(one_hot.sum(0), 1)  # rare classes count as much as others
        fitted = np.linalg.lstsq(features, one_hot, rcond=None)[0]
        head.kernel.assign(fitted[:-1].reshape(head.kernel.shape) / np.abs(fitted).max())
        head.bias.assign(fitted[-1] / np.abs(fitted).max())
        weights = [variable.value for variable in model.trainable_variables]
        state = train_state.TrainState('adam', weights, ema=False)
        checkpoint.save(run / workdir.BEST, tf.train.Checkpoint(model=model, state=state), step=1, keep=1)
        found[learnt] = run
    return found


def command(run, data, *flags, module='unet.evaluate'):
    return [sys.executable, '-m', module, f'--workdir={run}', f'--data_dir={data / "records"}', *flags]


def result_of(run, split='validation'):
    return json.loads((run / f'evaluate-{split}.json').read_text())


@pytest.fixture(scope='module')
def scored(workdirs, data):
    """One process scores and writes a submission of the labelled split."""
    folder = data / 'submission'
    flags = ('--split=validation', f'--cityscapes_dir={data / "dataset"}', f'--submission_dir={folder}')
    done = tiny.run(command(workdirs['train_ids'], data, *flags))
    assert done.returncode == 0, done.stderr
    return result_of(workdirs['train_ids']), done.stdout, folder


def test_all_scores_are_the_official_evaluators_of_the_files_written(scored, data):
    result, _, folder = scored
    module = official.evaluator()
    module.args.predictionPath, module.args.predictionWalk = str(folder), None
    truths = sorted(map(str, data.glob('dataset/gtFine/val/*/*_labelIds.png')))
    assert len(truths) == 5
    predictions = [module.getPrediction(module.args, truth) for truth in truths]
    theirs = official.as_our_scores(module.evaluateImgLists(predictions, truths, module.args))
    ours = {name: np.nan if value is None else value for name, value in result['scores'].items()}
    assert official.largest_difference(theirs, ours) < 1e-12
    assert sum(value > 0 for name, value in ours.items() if name.startswith('eval/iiou/')) >= 1
    assert 0 < ours['eval/boundary_iou'] < 1 and 0 < ours['eval/class_accuracy'] < 1


def test_console_and_files_tell_the_scores(scored, workdirs):
    result, printed, folder = scored
    lines = printed.splitlines()
    assert lines[-1].startswith(f'mIoU {100 * result["scores"]["eval/miou"]:.2f} %')
    header = next(line for line in lines if line.startswith('class '))
    assert all(title in header for title in ('IoU %', 'iIoU %', 'boundary %', 'accuracy %', 'pixels %'))
    sky = next(line for line in lines if line.startswith('sky ')).split()
    assert sky[1] == f'{100 * result["scores"]["eval/iou/sky"]:.2f}'
    assert len(result['scores_of_images']) == result['images'] == 5
    assert np.sum(result['confusion']) == 5 * SIZE[0] * SIZE[1]
    with Image.open(workdirs['train_ids'] / 'confusion-validation.png') as picture:
        assert picture.format == 'PNG' and min(picture.size) > 500
        assert len(np.unique(np.asarray(picture.convert('L')))) > 20
    with zipfile.ZipFile(f'{folder}.zip') as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(path.name for path in folder.iterdir())


def test_two_processes_give_the_same_as_one(scored, workdirs, data):
    folder = data / 'by_two'
    flags = ('--split=validation', '--batch=1', f'--cityscapes_dir={data / "dataset"}', f'--submission_dir={folder}')
    run = workdirs['train_ids']
    done = tiny.run([*command(run, data, '--workers=2', '--module=unet.evaluate', module='launch.local'), '--', *flags])
    assert done.returncode == 0, done.stderr
    assert result_of(run) == scored[0]
    assert trees.contents(folder) == trees.contents(scored[2])
    assert done.stdout.count('mIoU') == 1 and '[1]' not in done.stdout  # the chief speaks


def test_a_model_of_all_ids_is_scored_both_ways_through_windows_scales_and_mirror_images(workdirs, data):
    run = workdirs['label_ids']
    done = tiny.run(command(run, data, '--window=32x64', '--overlap=0.5', '--scales=0.5,1', '--flip', '--batch=5'))
    assert done.returncode == 0, done.stderr
    result = result_of(run)
    assert result['inference'] == {'scales': [0.5, 1.0], 'flip': True, 'window': [32, 64], 'overlap': 0.5}
    confusion = np.array(result['confusion'])
    predicted_void = confusion[:, [label.id for label in labels.CITYSCAPES if label.ignored]].sum()
    assert predicted_void > 0  # such a model may predict void, which costs by the official rules
    assert result['scores']['eval/iou_all_ids/sky'] < 1 and 'eval/iou/sky' in result['scores']
    own, official_part = done.stdout.split('By the official rules:')
    assert 'unlabeled' in own and 'class ' in official_part and 'unlabeled' not in official_part


@AS_ROOT
def test_a_run_that_may_only_be_read_is_scored(scored, workdirs, data, tmp_path):
    before = trees.contents(workdirs['train_ids'])
    with tempfile.TemporaryDirectory() as open_to_all:  # which pytest's own folders are not
        run = shutil.copytree(workdirs['train_ids'], pathlib.Path(open_to_all, 'run'))
        for folder in (open_to_all, run):
            os.chmod(folder, 0o755)
        done = as_nameless(command(run, data))
        assert done.returncode == entry.OK, done.stderr
        assert done.stdout.splitlines()[-1] == scored[1].splitlines()[-1]
        assert f'Not written: {run}/evaluate-validation.json: Permission denied' in done.stdout
    done = tiny.run(command(workdirs['train_ids'], data, f'--output_dir={tmp_path / "new/scores"}'))
    assert done.returncode == entry.OK, done.stderr
    written = {path.name for path in (tmp_path / 'new/scores').iterdir()}
    assert written == {'evaluate-validation.json', 'confusion-validation.png'}
    assert trees.contents(workdirs['train_ids']) == before


def test_submission_of_images_without_labels(workdirs, data, tmp_path):
    run = workdirs['label_ids']
    done = tiny.run(command(run, data, f'--submission_dir={tmp_path / "out"}'))
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert names == [
        f'{stem}_pred_labelIds.png' for stem in ('berlin_000000_000019', 'berlin_000001_000019', 'bonn_000000_000019')
    ]
    for name in names:
        with Image.open(tmp_path / 'out' / name) as image:
            assert image.mode == 'L' and image.size == (70, 50)
    assert not (run / 'evaluate-test.json').exists()  # there is nothing to score


def failure(function, *arguments):
    with pytest.raises(entry.UserError) as raised:
        function(*arguments)
    assert '\n' not in str(raised.value)
    return raised.value.status, str(raised.value)


def test_flags_that_cannot_work_are_refused_with_a_remedy():
    assert options.parse_window('512x1024', 5, 'same') == (512, 1024)
    for text in ('512', '512x', '0x16', 'axb', '-16x16'):
        assert failure(options.parse_window, text, 5, 'same')[0] == entry.BAD_USAGE
    assert '[496, 512]' in failure(options.parse_window, '512x500', 5, 'same')[1]
    assert '[572, 588]' in failure(options.parse_window, '580x572', 5, 'valid')[1]
    assert options.parse_scales(['0.5', '1']) == (0.5, 1.0)
    for texts in ([], [''], ['one'], ['0'], ['-1'], ['nan'], ['1', '50']):
        assert failure(options.parse_scales, texts)[0] == entry.BAD_USAGE


def test_folders_that_are_no_place_for_a_submission(data, tmp_path):
    split = records.read_split(data / 'records', 'validation')
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old' / 'bremen_000000_000019.png').write_bytes(b'')
    status, message = failure(submission.prepare, tmp_path, split, None)
    assert status == entry.BAD_USAGE and 'old/bremen_000000_000019.png' in message
    submission.prepare(tmp_path / 'new', split, None)
    submission.paths(tmp_path / 'new', split)[0].write_bytes(b'')
    submission.prepare(tmp_path / 'new', split, None)  # what it would replace does not hinder it
    named = records.read_split(tiny.write_folder(tmp_path / 'other', validation=tiny.scenes(1)), 'validation')
    assert failure(submission.prepare, tmp_path / 'x', named, None)[0] == entry.BAD_DATA
    smaller = {'flags': {'size': [512, 1024]}}
    assert '512x1024' in failure(submission.prepare, tmp_path / 'x', split, smaller)[1]
    assert not (tmp_path / 'x').exists()
    for name in (
        'n' * 250,
        'ü' * 125,
    ):  # its zip has as long a name as there may be, and while it is written a longer one
        submission.prepare(tmp_path / name, split, None)
        for path, height, width in zip(
            submission.paths(tmp_path / name, split), split.height, split.width, strict=True
        ):
            submission.write(path, np.full((height, width), 7, np.uint8))
        assert submission.check_and_zip(tmp_path / name, split, labels.CITYSCAPES).name == f'{name}.zip'
    assert failure(submission.prepare, tmp_path / ('n' * 252), split, None)[0] == entry.BAD_USAGE
    (tmp_path / 'new/.ipynb_checkpoints').mkdir()
    (tmp_path / 'new/.ipynb_checkpoints/x-checkpoint.png').touch()
    submission.prepare(tmp_path / 'new', split, None)


def test_what_is_wrong_with_a_submission_is_found(data, tmp_path):
    split = records.read_split(data / 'records', 'validation')
    files = submission.paths(tmp_path / 'files', split)
    good = np.full(SIZE, 7, np.uint8)
    submission.prepare(tmp_path / 'files', split, None)
    for bad, problem in (
        (tiny.png(good[:-1]), '63x128, its image is 64x128'),
        (tiny.png(np.repeat(good[..., None], 3, 2)), 'mode RGB'),
        (tiny.png(np.full(SIZE, 200, np.uint8)), '200, which is no label id'),
        (tiny.png(good)[:60], 'not readable'),
        (None, 'not readable'),
    ):
        for path in files:
            path.write_bytes(tiny.png(good))
        files[3].unlink()
        if bad is not None:
            files[3].write_bytes(bad)
        status, message = failure(submission.check_and_zip, tmp_path / 'files', split, labels.CITYSCAPES)
        assert status == entry.NO_STORAGE and problem in message and files[3].name in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ['files']  # no zip


def test_instance_files_are_found_in_folders_and_zips_and_must_fit(data, tmp_path):
    split = records.read_split(data / 'records', 'validation')
    tree = data / 'dataset'
    found = instance_iou.find(tree, split.image_ids)
    assert list(found) == list(split.image_ids)
    zipped = instance_iou.find(trees.zip_tree(tree, tmp_path / 'zips'), split.image_ids)
    for image_id in split.image_ids:
        assert zipped[image_id].read_bytes() == found[image_id].read_bytes()
        truth = np.asarray(Image.open(next(tree.glob(f'gtFine/*/*/{image_id}_gtFine_labelIds.png'))))
        np.testing.assert_array_equal(
            instance_iou.read(zipped[image_id], truth), np.asarray(Image.open(str(found[image_id])))
        )
    assert failure(instance_iou.find, tmp_path / 'nowhere', split.image_ids)[0] == entry.MISSING_INPUT
    status, message = failure(instance_iou.find, tree, [*split.image_ids, 'bonn_000000_000019'])
    assert status == entry.MISSING_INPUT and 'bonn_000000_000019' in message and '1 of 6' in message
    file = found[split.image_ids[0]]
    assert 'without --size' in failure(instance_iou.read, file, truth[:32])[1]
    assert 'another class' in failure(instance_iou.read, file, np.zeros(SIZE, np.uint8))[1]
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    assert 'cannot be read' in failure(instance_iou.read, tmp_path / 'broken.png', truth)[1]
    own = (labels.Label(0, 'ghost', 0, (0, 0, 0), 'human', True),)
    assert 'ghost' in failure(instance_iou.check_classes, own)[1]
    assert failure(instance_iou.check_classes, (labels.Label(0, 'road', 0, (0, 0, 0)),))[0] == entry.BAD_DATA
    instance_iou.check_classes(labels.CITYSCAPES)

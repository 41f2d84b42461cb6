"""From a folder of images and colour masks to the first scores, by the commands of docs/howto.md."""

import dataclasses
import io
import json
import sys

import numpy as np
from PIL import Image

from data_prep import labels, records
from launch import entry
from tests import tiny, trees


def test_images_and_masks_of_ones_own_are_trained_on_and_scored(tmp_path):
    rng = np.random.default_rng(0)
    colors = np.array([label.color for label in labels.find('camvid')], np.uint8)
    for name in ('train/a/1', 'train/a/2', 'train/b/1', 'train/b/2', 'valid/c/1'):
        mask = colors[rng.integers(0, len(colors), (5, 7))].repeat(8, 0).repeat(8, 1)
        photo = io.BytesIO()
        Image.fromarray(mask ^ 90).save(photo, 'JPEG')
        trees.write(tmp_path, f'photos/{name}.JPG', photo.getvalue())
        trees.write(tmp_path, f'masks/{name}_L.png', tiny.png(mask))
    data_dir, workdir = tmp_path / 'records', tmp_path / 'run'
    source = [
        f'--images={tmp_path}/photos/{{split}}/{{name}}.JPG',
        f'--masks={tmp_path}/masks/{{split}}/{{name}}_L.png',
        '--masks_are=colors',
    ]
    command = [
        sys.executable,
        '-m',
        'data_prep.build_tfrecords',
        *source,
        '--labels=camvid11',
        f'--data_dir={data_dir}',
    ]
    done = tiny.run(command)
    assert done.returncode == 0, done.stderr
    assert "--config=configs/default.py '--config.data.crop=(32,48)'" in done.stdout
    assert records.read_label_table(data_dir) == labels.find('camvid11')
    done = tiny.run(tiny.train_command(workdir, data_dir, num_steps=2, eval__every_steps=2, global_batch=2))
    assert done.returncode == 0, done.stderr
    done = tiny.run([sys.executable, '-m', 'unet.evaluate', f'--workdir={workdir}', f'--data_dir={data_dir}'])
    assert done.returncode == 0, done.stderr
    scores = json.loads((workdir / 'evaluate-validation.json').read_text())
    names = {name.removeprefix('eval/iou/') for name in scores['scores'] if name.startswith('eval/iou/')}
    assert names == {label.name for label in labels.classes(labels.find('camvid11'))}
    assert list(scores['scores_of_images']) == ['photos/valid/c/1']
    assert not [name for name in scores['scores'] if 'iiou' in name]  # there are no instances

    # The same records, if two of their ids changed places: nothing is scored, trained on or shown by other names.
    before = (workdir / labels.FILE).read_bytes()
    one, other, *rest = labels.find('camvid11')
    swapped = (dataclasses.replace(one, name=other.name), dataclasses.replace(other, name=one.name), *rest)
    (data_dir / labels.FILE).write_text(labels.to_json(swapped))
    manifest = data_dir / records.MANIFEST
    manifest.unlink()  # whose digest would find it
    train = tiny.train_command(workdir, data_dir, num_steps=4, eval__every_steps=2, global_batch=2)
    known = [f'--workdir={workdir}', f'--data_dir={data_dir}']
    for command in (
        train,
        [sys.executable, '-m', 'unet.evaluate', *known],
        [sys.executable, '-m', 'unet.report', *known],
    ):
        done = tiny.run(command)
        assert done.returncode == entry.BAD_DATA, (command, done.stderr)
        assert f'{workdir}/labels.json: id {one.id} is {one.name!r}' in done.stderr.splitlines()[-1]
    assert (workdir / labels.FILE).read_bytes() == before

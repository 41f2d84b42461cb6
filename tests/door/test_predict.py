"""unet.predict over folders as people have them: all that can be predicted is, and all the rest is named."""

import os
import sys

import numpy as np

from launch import entry
from tests import tiny
from tests.data.test_media import put, write_video


def predict(images, output, *flags):
    flags = ['--model=tests/before/export', f'--images={images}', f'--output_dir={output}', *flags]
    return tiny.run([sys.executable, '-m', 'unet.predict', *flags])


def results(output, kind='label_ids') -> set[str]:
    return {str(file.relative_to(output / kind)) for file in (output / kind).rglob('*') if file.is_file()}


def test_one_bad_input_never_ends_the_others_and_no_result_overwrites_another(tmp_path):
    photos = put(tmp_path / 'photos', 'a.jpg', 'a.png', 'c/drive/000000.png', 'x.jpg', 'x.png/1.jpg', 'z.png')
    put(
        photos,
        '@eaDir/a.png',
        'c/.ipynb_checkpoints/a-checkpoint.png',
        'p.heic',
        'c/q.gif',
        'cut.jpg',
        f'{"l" * 251}.tif',
    )
    put(tmp_path, 'elsewhere/1.png')
    write_video(photos / 'c/drive.mp4', [np.full((32, 48, 3), 8 * number, np.uint8) for number in range(3)])
    (photos / 'cut.jpg').write_bytes(b'\xff\xd8\xff\xe0' + bytes(range(200)))
    (photos / 'city').symlink_to('../elsewhere')
    (photos / 'c/loop').symlink_to('..')
    for gone in ('gone', 'gone.png'):
        (photos / gone).symlink_to(f'/nowhere/{gone}')
    named = put(tmp_path, 'n' * 255) / ('n' * 255)  # its results would have longer names than there are
    done = predict(photos, tmp_path / 'out', f'--images={named}', '--outputs=label_ids,panels', '--batch=4')
    assert done.returncode == entry.BAD_DATA, done.stdout + done.stderr
    wanted = ['a.jpg', 'a.png', 'c/drive/000000', 'x.jpg', 'x.png/1', 'z', 'city/1', 'l' * 251]
    wanted = {f'photos/{name}.png' for name in (*wanted, *(f'c/drive.mp4/00000{number}' for number in range(3)))}
    assert results(tmp_path / 'out') == results(tmp_path / 'out', 'panels') == wanted
    assert '11 images by' in done.stdout
    assert 'Passed over: 2 file(s) that look like images, since .gif, .heic are not read' in done.stdout
    assert f'{photos}/p.heic' in done.stdout and f'{photos}/c/q.gif' in done.stdout
    said = done.stderr.splitlines()
    assert '4 could not be read or written' in said[0] and len(said) == 5
    for name in (
        'gone: is a link to /nowhere/gone',
        'gone.png: is a link to',
        'cut.jpg: ',
        'nnn.png: File name too long',
    ):
        assert sum(name in line for line in said) == 1, name


def test_what_hinders_every_result_ends_at_once(tmp_path):
    photos = put(tmp_path / 'photos', 'a.jpg', 'b.png')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/label_ids').touch()
    done = predict(photos, tmp_path / 'out')
    assert done.returncode == entry.BAD_USAGE and f'{tmp_path}/out/label_ids' in done.stderr
    (tmp_path / 'b').mkdir()
    os.symlink('/nowhere', tmp_path / 'b/gone.jpg')
    done = predict(tmp_path / 'b', tmp_path / 'none')
    assert done.returncode == entry.BAD_DATA and '0 images by' in done.stdout and 'gone.jpg: ' in done.stderr

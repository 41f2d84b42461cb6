import functools
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from etils import epath
from PIL import Image

from data_prep import cityscapes_layout, images, labels, polygons, records, shards, stage_tfrecords
from launch import entry, record_folder
from tests import tiny, trees


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    stems = [f'{city}_{number:06d}_000019' for city in ('ulm', 'köln', 'bad berg') for number in range(8)]
    return trees.write_tree(
        tmp_path_factory.mktemp('source'), {'train': stems, 'val': ['bonn_000000_000019', 'bonn_000001_000019']}
    )


@pytest.fixture(scope='module')
def built(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp('built') / 'records'
    done = trees.build(source, folder, '--workers=2')
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """Pairs that take long enough to be interrupted while they are built, and the records of an undisturbed build."""
    folder = tmp_path_factory.mktemp('large')
    trees.write_tree(folder / 'source', {'train': [f'ulm_{number:06d}' for number in range(480)]}, (256, 512))
    assert trees.build(folder / 'source', folder / 'records', '--image_format=jpeg').returncode == 0
    return folder


def test_every_pair_is_stored_once_and_its_bytes_unchanged(source, built):
    split = records.read_split(built, 'train')
    assert len(split) == 24 and len(set(split.image_ids)) == 24
    for number, stem in enumerate(split.image_ids):
        city = stem.split('_')[0]
        example = records.read_example(split, number)
        image = source / f'leftImg8bit/train/{city}/{stem}_leftImg8bit.png'
        label = source / f'gtFine/train/{city}/{stem}_gtFine_labelIds.png'
        assert example['image_id'].decode() == stem
        assert example['image_left'] == image.read_bytes() and example['segmentation_label'] == label.read_bytes()
    assert {paths.split('_')[0] for paths in split.image_ids[:6]} != {'ulm'}  # cities are shuffled


def test_manifest_counts_what_is_there(source, built):
    manifest = records.read_manifest(built)
    pixels = manifest['splits']['train']['class_pixels']
    expected = np.zeros(256, np.int64)
    for path in (source / 'gtFine/train').rglob('*.png'):
        expected += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
    assert {int(id_): count for id_, count in pixels.items() if count} == {
        id_: expected[id_] for id_ in np.flatnonzero(expected)
    }
    for split in manifest['splits'].values():
        assert split['examples'] == split['labelled'] == sum(shard['examples'] for shard in split['shards'])
        for shard in split['shards']:
            assert (built / shard['file']).stat().st_size == shard['bytes']


def test_plain_tfds_opens_the_folder(built):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(built)
    assert builder.info.splits['train'].num_examples == 24
    (first, second) = builder.as_dataset('validation').as_numpy_iterator()
    assert first['image_left'].shape == (24, 40, 3) and second['segmentation_label'].shape == (24, 40, 1)
    parts = [len(builder.as_dataset(part)) for part in ('train[:10%]', 'train[10%:25%]', 'train[-3:]')]
    assert parts == [2, 4, 3]


@pytest.mark.parametrize('sizes', [(trees.SIZE, trees.SIZE), (trees.SIZE, (12, 20))])
def test_metadata_is_what_tfds_itself_writes(tmp_path, sizes):
    import tensorflow_datasets as tfds

    for split, size in zip(('train', 'val'), sizes, strict=True):
        trees.write_tree(tmp_path / 'source', {split: [f'{split}_{number}' for number in range(9)]}, size)
    trees.build_here(tmp_path / 'source', tmp_path / 'records')
    height, width = sizes[0] if sizes[0] == sizes[1] else (None, None)
    written = trees.contents(tmp_path / 'records')
    shards = {split: (tmp_path / 'records').glob(f'*-{split}.tfrecord-*') for split in ('train', 'validation')}
    manifest = records.read_manifest(tmp_path / 'records')['splits']
    tfds.folder_dataset.write_metadata(
        data_dir=str(tmp_path / 'records'),
        version='1.0.0',
        features=tfds.features.FeaturesDict(
            {
                'image_id': tfds.features.Text(),
                'image_left': tfds.features.Image(shape=(height, width, 3)),
                'segmentation_label': tfds.features.Image(shape=(height, width, 1), use_colormap=True),
            }
        ),
        split_infos=[
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[shard['examples'] for shard in manifest[name]['shards']],
                num_bytes=sum(path.stat().st_size for path in paths),
                filename_template=tfds.core.ShardedFileTemplate(
                    dataset_name='cityscapes',
                    data_dir=str(tmp_path / 'records'),
                    filetype_suffix='tfrecord',
                    split=name,
                ),
            )
            for name, paths in shards.items()
        ],
        check_data=False,
    )
    assert trees.contents(tmp_path / 'records') == written


def test_plain_tfds_shows_the_folder_as_a_dataframe(built):
    pytest.importorskip('pandas')
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(built)
    frame = tfds.as_dataframe(builder.as_dataset('train').take(3), builder.info)
    assert list(frame.columns) == ['image_id', 'image_left', 'segmentation_label'] and len(frame) == 3


def test_tfds_folder_without_our_index_is_read_too(built, tmp_path):
    """As `tfds build cityscapes` leaves it: shards and TFDS's own metadata."""
    for path in built.iterdir():
        if not path.name.startswith(('index', 'manifest', 'labels')):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    ours, theirs = records.read_split(built, 'train'), records.read_split(tmp_path, 'train')
    assert ours.image_ids == theirs.image_ids and (ours.offset == theirs.offset).all()
    assert (theirs.height == 24).all() and (theirs.width == 40).all()
    assert records.read_label_table(tmp_path) == labels.CITYSCAPES


def test_pairs_are_made_by_name_not_by_position(tmp_path):
    """Sorted by file name, images come as a_h, a and labels as a, a_h: pairing by position would swap them."""
    source = trees.write_tree(tmp_path, {'train': ['a', 'a_h']})
    pictures = sorted(path.name for path in (source / 'leftImg8bit/train/a').iterdir())
    masks = sorted(path.name for path in (source / 'gtFine/train/a').iterdir())
    assert [name.split('_left')[0] for name in pictures] != [name.split('_gt')[0] for name in masks]
    pairs = cityscapes_layout.scan(source).pairs
    assert len(pairs) == 2
    for pair in pairs:
        assert pair.image.endswith(f'/{pair.image_id}_leftImg8bit.png')
        assert pair.label.endswith(f'/{pair.image_id}_gtFine_labelIds.png')


def test_number_of_workers_and_zip_files_make_no_difference(source, built, tmp_path):
    """Nor does a source that is partly extracted. Of the bytes of any file, the manifest and metadata included."""
    zips = trees.zip_tree(source, tmp_path / 'zips')
    path = next((source / 'gtFine/val').rglob('*.png')).relative_to(source)
    trees.write(zips, path.as_posix(), (source / path).read_bytes())
    for where, workers in ((source, 1), (zips, 2)):
        done = trees.build(where, tmp_path / f'{workers}', f'--workers={workers}')
        assert done.returncode == 0, done.stderr
        assert trees.contents(tmp_path / f'{workers}') == trees.contents(built)


def test_zip_files_with_the_names_of_the_download(tmp_path):
    """Several hold the same top folder; coarse labels are used where there are no fine ones."""
    tree = trees.write_tree(tmp_path / 'tree', {'train': ['a_1'], 'val': ['b_1']})
    trees.write_tree(tree, {'train': ['a_1'], 'train_extra': ['c_1']}, kind='gtCoarse')
    (tmp_path / 'zips').mkdir()
    for name, folders in {
        'leftImg8bit_trainvaltest': ('leftImg8bit/train', 'leftImg8bit/val'),
        'leftImg8bit_trainextra': ('leftImg8bit/train_extra',),
        'gtFine_trainvaltest': ('gtFine',),
        'gtCoarse': ('gtCoarse',),
    }.items():
        with zipfile.ZipFile(tmp_path / f'zips/{name}.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(path for folder in folders for path in (tree / folder).rglob('*.png')):
                archive.write(path, path.relative_to(tree))
    trees.build_here(tree, tmp_path / 'records')
    trees.build_here(tmp_path / 'zips', tmp_path / 'from zips')
    assert records.split_sizes(tmp_path / 'records') == {'train': 1, 'validation': 1, 'train_extra': 1}
    assert trees.contents(tmp_path / 'from zips') == trees.contents(tmp_path / 'records')


def test_beam_writes_the_same_bytes(source, built, tmp_path):
    pytest.importorskip('apache_beam')
    done = trees.build(source, tmp_path / 'records', '--engine=beam', '--beam_args=--runner=DirectRunner')
    assert done.returncode == 0, done.stderr
    assert trees.contents(tmp_path / 'records') == trees.contents(built)


def kill(process: subprocess.Popen) -> None:
    """The program alone: its workers have to notice by themselves."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def kill_and_resume(large: pathlib.Path, folder: pathlib.Path, rng: random.Random, kills: int, most: int) -> int:
    """Kills a build at random moments and lets it finish; returns how many kills met it at work.

    A moment is up to 0.4 s after there are up to `most` more shards than before: any time from its start to its end, on
    a slow machine as on a fast one.
    """
    command, met = trees.command(large / 'source', folder, '--image_format=jpeg'), 0
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.DEVNULL)
        enough = len(list(folder.glob('cityscapes-*'))) + rng.randint(0, most)
        while process.poll() is None and len(list(folder.glob('cityscapes-*'))) < enough:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        met += process.poll() is None
        whole = {path: path.stat().st_mtime_ns for path in folder.glob('cityscapes-*')}
        kill(process)
        if not (folder / records.MANIFEST).exists():
            with pytest.raises(entry.UserError):
                records.read_split(folder, 'train')
    assert tiny.run(command).returncode == 0
    assert whole.items() <= {path: path.stat().st_mtime_ns for path in folder.glob('cityscapes-*')}.items()
    assert trees.contents(folder) == trees.contents(large / 'records')
    return met


def test_killed_and_started_again_ends_the_same(large, tmp_path):
    assert kill_and_resume(large, tmp_path / 'records', random.Random(0), kills=3, most=2) >= 2


@pytest.mark.soak
def test_soak_killed_and_started_again_ends_the_same(large, tmp_path):
    rng, met = random.Random(1), 0
    for number in range(20):
        met += kill_and_resume(large, tmp_path / f'{number}', rng, kills=1, most=7)
    print(f'\n20 builds killed once each, {met} of them at work: all byte-identical')


def held_at_first_shard(large: pathlib.Path, folder: pathlib.Path, **options) -> subprocess.Popen:
    """A build that has stopped itself, which hands out no more shards then, once there is one."""
    _, _, _, *arguments = trees.command(large / 'source', folder, '--image_format=jpeg')
    command = [sys.executable, '-m', 'tests.held_build', *arguments]
    listening = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
    process = subprocess.Popen(
        command, cwd=tiny.ROOT, stdout=subprocess.DEVNULL, text=True, preexec_fn=listening, **options
    )
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    assert list(folder.glob('cityscapes-*')) and (folder / record_folder.PLAN).exists()
    return process


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stops_on_request(large, tmp_path, number):
    folder = tmp_path / 'records'
    process = held_at_first_shard(large, folder, stderr=subprocess.PIPE, start_new_session=True)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # a terminal signals all
    process.send_signal(signal.SIGCONT)
    _, text = process.communicate(timeout=300)
    assert process.returncode == entry.STOPPED
    assert 'the same command' in text and 'Traceback' not in text
    assert not list(folder.glob('.*.part'))
    done = trees.build(large / 'source', folder, '--image_format=jpeg')
    assert 'Going on' in done.stdout and trees.contents(folder) == trees.contents(large / 'records')


def test_two_builds_in_one_folder(large, tmp_path):
    process = held_at_first_shard(large, tmp_path / 'records')
    second = trees.build(large / 'source', tmp_path / 'records', '--image_format=jpeg')
    process.send_signal(signal.SIGCONT)
    assert second.returncode == entry.IN_USE and 'another build is at work' in second.stderr
    assert process.wait() == 0
    assert trees.contents(tmp_path / 'records') == trees.contents(large / 'records')


def test_full_disk_is_said_and_loses_nothing(large, tmp_path):
    disk = tmp_path / 'disk'
    disk.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', disk], capture_output=True)
    if mounted.returncode:
        pytest.skip('needs the right to mount a small file system')
    try:
        done = trees.build(large / 'source', disk / 'records', '--image_format=jpeg')
        assert done.returncode == entry.NO_STORAGE and 'No space left' in done.stderr, done.stderr
        assert 'Traceback' not in done.stderr and not list((disk / 'records').glob('.*'))
        whole = {path: path.stat().st_mtime_ns for path in (disk / 'records').glob('cityscapes-*')}
        subprocess.run(['mount', '-o', 'remount,size=64m', disk], check=True)
        done = trees.build(large / 'source', disk / 'records', '--image_format=jpeg')
        assert done.returncode == 0 and trees.contents(disk / 'records') == trees.contents(large / 'records')
        assert whole.items() <= {p: p.stat().st_mtime_ns for p in (disk / 'records').glob('cityscapes-*')}.items()
    finally:
        subprocess.run(['umount', disk], check=True)


def test_finished_folder_is_left_alone(source, built):
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    again = trees.build(source, built)
    assert again.returncode == 0 and 'complete' in again.stdout
    other = trees.build(source, built, '--seed=7', '--size=12x20')
    assert other.returncode == entry.IN_USE
    assert 'seed was 2019, now 7' in other.stderr and 'size was None, now [12, 20]' in other.stderr
    assert before == {path: path.stat().st_mtime_ns for path in built.iterdir()}


def test_other_sources_and_strange_folders_are_not_mixed_in(built, tmp_path):
    other = trees.write_tree(tmp_path / 'other', {'train': ['x_000000_000019']})
    with pytest.raises(entry.UserError, match='26 images, now there are 1.*Pass another --data_dir'):
        trees.build_here(other, built)
    with pytest.raises(entry.UserError, match='holds no dataset of ours'):
        trees.build_here(other, other)


@pytest.mark.parametrize('name, status', [('file', 64), ('file/below', 64), ('link', 64), ('n' * 300, 64)])
def test_a_data_dir_that_can_be_no_folder_is_wrong_usage(tmp_path, name, status):
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to('file')
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1']})
    try:
        trees.build_here(source, tmp_path / name)
    except (entry.UserError, OSError) as error:
        assert entry.as_user_error(error).status == status and str(tmp_path / name)[:99] in str(error)
    else:
        raise AssertionError


def test_what_tools_leave_behind_does_not_make_a_folder_another_datasets(tmp_path):
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1']})
    for name in ('records/@eaDir/x.png', 'records/Thumbs.db', 'records/.ipynb_checkpoints/x', 'records/._index.json'):
        trees.write(tmp_path, name, b'x')
    trees.build_here(source, tmp_path / 'records')
    assert stage_tfrecords.stage(epath.Path(tmp_path / 'records'), tmp_path / 'copy', [], 0, 1) == (1, 0, 0)
    assert not {path.name for path in (tmp_path / 'copy').iterdir()} & {'._index.json', 'Thumbs.db', '@eaDir'}


def test_unfinished_build_of_other_files_or_flags_is_not_mixed(tmp_path, monkeypatch):
    source = trees.write_tree(tmp_path / 'source', {'train': [f'x_{number}' for number in range(6)]})
    write_shard = shards.write_shard

    def three_only(shard, settings):
        if '00003' in shard.file:
            raise KeyboardInterrupt
        write_shard(shard, settings)

    monkeypatch.setattr(shards, 'write_shard', three_only)
    with pytest.raises(KeyboardInterrupt):
        trees.build_here(source, tmp_path / 'records')
    monkeypatch.undo()
    with pytest.raises(entry.UserError, match="image_format was 'source', now 'jpeg'") as failure:
        trees.build_here(source, tmp_path / 'records', encoding=images.Encoding('jpeg'))
    assert failure.value.status == entry.IN_USE
    first = shards.plan(cityscapes_layout.scan(source).pairs, 2019)['train'][0].pairs[0]
    content = (source / first.image).read_bytes()
    (source / first.image).write_bytes(tiny.png(tiny.scene(trees.SIZE, 99)[0]))
    with pytest.raises(entry.UserError, match='1 pair.s. that it has stored are gone or of another size'):
        trees.build_here(source, tmp_path / 'records')
    (source / first.image).write_bytes(content)
    trees.build_here(source, tmp_path / 'records')
    trees.build_here(source, tmp_path / 'fresh')
    assert trees.contents(tmp_path / 'records') == trees.contents(tmp_path / 'fresh')


def test_images_without_labels_are_stored_and_flagged(tmp_path):
    source = trees.write_tree(tmp_path / 'source', {'test': ['x_1', 'x_2']})
    (source / 'gtFine/test/x/x_2_gtFine_labelIds.png').unlink()
    trees.build_here(source, tmp_path / 'records')
    split = records.read_split(tmp_path / 'records', 'test')
    assert dict(zip(split.image_ids, split.labelled.tolist(), strict=True)) == {'x_1': True, 'x_2': False}
    assert records.read_manifest(tmp_path / 'records')['splits']['test']['labelled'] == 1


def test_jpeg_and_size(tmp_path):
    """Images shrink by area and labels by nearest neighbour; an edge of colour stays sharp in 4:4:4."""
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1']})
    image, label = tiny.scene(trees.SIZE, 0)
    trees.build_here(source, tmp_path / 'small', encoding=images.Encoding(size=(12, 20)))
    trees.build_here(source, tmp_path / 'jpeg', encoding=images.Encoding('jpeg', 95))
    small, jpeg = (records.read_example(records.read_split(tmp_path / name, 'train'), 0) for name in ('small', 'jpeg'))
    pixels = np.asarray(Image.open(io.BytesIO(small['image_left']))).astype(float)
    mean = image.reshape(12, 2, 20, 2, 3).mean((1, 3))
    assert pixels.shape == (12, 20, 3) and np.abs(pixels - mean).max() <= 1  # rounded per axis
    stored = np.asarray(Image.open(io.BytesIO(small['segmentation_label'])))
    assert (stored == label[1::2, 1::2]).all()
    manifest = records.read_manifest(tmp_path / 'small')
    assert manifest['flags']['size'] == [12, 20] and sum(manifest['splits']['train']['class_pixels'].values()) == 240
    picture = Image.open(io.BytesIO(jpeg['image_left']))
    assert (
        picture.format == 'JPEG'
        and picture.size == (40, 24)
        and [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3
    )
    assert np.abs(np.asarray(picture).astype(int) - image).mean() < 3
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(jpeg['segmentation_label']))), label)


def test_own_classes_and_jpeg_sources(tmp_path):
    table = [{'id': 3, 'name': 'cat', 'train_id': 0, 'color': [9, 9, 9]}, {'id': 5, 'name': 'dog', 'train_id': 1}]
    table[1]['color'] = [7, 7, 7]
    (tmp_path / 'classes.json').write_text(json.dumps({'labels': table}))
    content = io.BytesIO()
    Image.fromarray(tiny.scene(trees.SIZE, 0)[0]).save(content, 'JPEG')
    for split in ('train', 'test'):
        trees.write(tmp_path / 'source', f'leftImg8bit/{split}/a/{split} ü_leftImg8bit.jpg', content.getvalue())
    trees.write(tmp_path / 'source', 'gtFine/train/a/train ü_gtFine_labelIds.png', trees.grey(5))
    done = trees.build(tmp_path / 'source', tmp_path / 'records', f'--labels={tmp_path / "classes.json"}')
    assert done.returncode == 0, done.stderr
    assert [label.name for label in records.read_label_table(tmp_path / 'records')] == ['cat', 'dog']
    split = records.read_split(tmp_path / 'records', 'train')
    assert split.image_ids == ('train ü',) and records.read_example(split, 0)['image_left'] == content.getvalue()
    blank = records.read_example(records.read_split(tmp_path / 'records', 'test'), 0)['segmentation_label']
    assert np.asarray(Image.open(io.BytesIO(blank))).max() == 255  # no id of this table is ignored
    assert records.read_manifest(tmp_path / 'records')['splits']['train']['class_pixels'] == {'3': 0, '5': 960}


def test_coarse_labels_and_polygons(tmp_path, capsys):
    source = trees.write_tree(tmp_path, {'train': ['a_1'], 'train_extra': ['b_1']}, kind='gtCoarse')
    polygon = {'label': 'road', 'polygon': [[0, 0], [39, 0], [39, 23]]}
    drawn = json.dumps({'imgHeight': 24, 'imgWidth': 40, 'objects': [polygon]}).encode()
    trees.write(source, 'gtFine/train/a/a_1_gtFine_polygons.json', drawn)
    locations = {
        annotations: [pair.label for pair in cityscapes_layout.scan(source, annotations).pairs]
        for annotations in ('gtFine', 'gtCoarse')
    }
    assert locations == {
        'gtFine': ['gtFine/train/a/a_1_gtFine_polygons.json', 'gtCoarse/train_extra/b/b_1_gtCoarse_labelIds.png'],
        'gtCoarse': [
            'gtCoarse/train/a/a_1_gtCoarse_labelIds.png',
            'gtCoarse/train_extra/b/b_1_gtCoarse_labelIds.png',
        ],
    }
    trees.build_here(source, tmp_path / 'records')
    stored = records.read_example(records.read_split(tmp_path / 'records', 'train'), 0)['segmentation_label']
    expected = polygons.draw(drawn, labels.CITYSCAPES, 0)
    assert (np.asarray(Image.open(io.BytesIO(stored))) == np.asarray(expected)).all() and stored
    assert records.split_sizes(tmp_path / 'records') == {'train': 1, 'train_extra': 1}
    said = capsys.readouterr().out
    assert 'Note: no validation split' in said and 'Next:' in said and '--config.data.eval_split=train ' in said


def test_shards_hold_about_128_mib_of_source_files():
    pairs = [cityscapes_layout.Pair('train', f'x_{number}', 'i', 'l', 2_200_000) for number in range(2975)]
    plan = shards.plan(pairs, 2019)['train']
    assert len(plan) == 49 and {len(shard.pairs) for shard in plan} == {60, 61}
    assert sorted(pair.image_id for shard in plan for pair in shard.pairs) == sorted(pair.image_id for pair in pairs)
    assert len(shards.plan(pairs[:3], 2019)['train']) == 3


def test_help_and_workers_do_without_tensorflow():
    code = (
        'import sys; from data_prep import build, executors, verification\n'
        "assert not {'tensorflow', 'tensorflow_datasets', 'apache_beam'} & set(sys.modules)"
    )
    assert tiny.run([sys.executable, '-c', code]).returncode == 0
    done = tiny.run([sys.executable, '-m', 'data_prep.build_tfrecords', '--help'])
    assert done.returncode == 0 and '--cityscapes_dir' in done.stdout and 'sharded TFRecords' in done.stdout


@pytest.mark.parametrize(
    'flag, status',
    [
        ('--size=12', entry.BAD_USAGE),
        ('--splits=training', entry.BAD_USAGE),
        ('--beam_args=--x', entry.BAD_USAGE),
        ('--labels=nowhere.json', entry.MISSING_INPUT),
        ('--cityscapes_dir=nowhere', entry.MISSING_INPUT),
        ('--cityscapes_dir=pyproject.toml', entry.MISSING_INPUT),
    ],
)
def test_mistakes_in_flags(tmp_path, flag, status):
    done = trees.build('.', tmp_path / 'records', flag)
    assert done.returncode == status and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / 'records').exists()


def test_index_and_shards_must_agree(built, tmp_path):
    for path in built.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = next(tmp_path.glob('cityscapes-train*'))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(entry.UserError, match='the index says'):
        records.read_split(tmp_path, 'train')
    index = json.loads((built / 'index-train.json').read_text())
    assert [shard['file'] for shard in index['shards']] == sorted(shard['file'] for shard in index['shards'])

"""What people call images: every mode, turned, cut off, too large, in folders and in videos."""

import pathlib
import struct
import warnings

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from launch import entry
from tests import tiny
from unet.data import media


def write_video(path: pathlib.Path, images: list[np.ndarray]) -> None:
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=10, options={'crf': '0', 'preset': 'ultrafast'})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = 'yuv444p'
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
        container.mux(stream.encode())


def read(*patterns) -> tuple[dict[str, np.ndarray], list[str]]:
    problems = []
    sources = media.find(map(str, patterns), problems, [])
    return dict(media.read(sources, problems)), problems


def names_of(*patterns, leave_out=()) -> list[str]:
    problems = []
    sources = media.find(map(str, patterns), problems, [], leave_out=leave_out)
    assert problems == []
    return list(sources)


def test_every_kind_of_image_becomes_the_same_pixels(tmp_path):
    grey = np.tile(np.arange(0, 240, 5, dtype=np.uint8), (24, 1))
    image = Image.fromarray(grey)
    image.save(tmp_path / 'grey.png')
    image.convert('RGB').save(tmp_path / 'rgb.BMP')
    image.convert('RGBA').save(tmp_path / 'alpha.webp', lossless=True)
    image.convert('P').save(tmp_path / 'palette.png')
    image.convert('LA').save(tmp_path / 'grey_alpha.png')
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / 'sixteen_bits.tif')
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to view: a phone held upright
    image.rotate(90, expand=True).save(tmp_path / 'turned.png', exif=exif)
    found, problems = read(tmp_path)
    assert problems == [] and len(found) == 7
    for name, pixels in found.items():
        np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, -1), err_msg=name)


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('shape', [(24, 40), (24, 40, 3), (9, 7, 4)], ids=['grey', 'RGB', 'RGBA'])
def test_16_bits_are_read_where_they_are_used_and_refused_where_it_would_be_dark(tmp_path, suffix, shape):
    values = np.random.default_rng(0).integers(0, 1 << 16, shape, np.uint16)
    for bits in (16, 15, 14, 12, 10, 8):
        cv2.imwrite(str(tmp_path / f'{bits}.{suffix}'), values >> (16 - bits))
    found, problems = read(tmp_path)
    assert sorted(found) == ['15', '16']
    assert [f'fills {bits} of its 16' in line for bits, line in zip((10, 12, 14, 8), problems, strict=True)] == [
        True
    ] * 4
    np.testing.assert_array_equal(found['16'][..., 0], (values if values.ndim == 2 else values[..., 2]) >> 8)


def test_an_aerial_photograph_is_an_image(tmp_path):
    Image.new('1', (20_000, 9_000), 1).save(tmp_path / 'aerial.png')
    found, problems = read(tmp_path)
    assert not problems and found['aerial'].shape == (9_000, 20_000, 3) and found['aerial'][-1, -1].all()


def test_files_that_cannot_be_read_are_named_and_cost_nothing_else(tmp_path):
    image, _ = tiny.scene((40, 56), seed=0)
    content = tiny.png(image)
    (tmp_path / 'a.png').write_bytes(content)
    (tmp_path / 'cut.png').write_bytes(content[: len(content) // 2])
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'text.jpg').write_text('not an image')
    (tmp_path / 'damaged.mp4').write_bytes(b'no video' * 100)
    Image.new('1', (20_000, 20_000)).save(tmp_path / 'huge.png')
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / 'float.tiff')
    (tmp_path / 'z.png').write_bytes(content)
    found, problems = read(tmp_path)
    assert list(found) == ['a', 'z']
    bad = ['cut.png', 'damaged.mp4', 'empty.jpg', 'float.tiff', 'huge.png', 'text.jpg']
    assert [pathlib.Path(line.partition(': ')[0]).name for line in problems] == bad


def test_frames_of_a_video_come_in_order(tmp_path):
    images = [np.full((32, 48, 3), 8 * number, np.uint8) for number in range(25)]
    write_video(tmp_path / 'drive.mkv', images)
    (tmp_path / 'after.png').write_bytes(tiny.png(images[0]))
    found, problems = read(tmp_path)
    assert problems == [] and list(found) == ['after', *(f'drive/{number:06d}' for number in range(25))]
    levels = [int(found[f'drive/{number:06d}'].mean()) for number in range(25)]
    assert np.abs(np.array(levels) - 8 * np.arange(25)).max() <= 3  # colour conversion rounds
    assert media.count({'drive': tmp_path / 'drive.mkv'}) <= 25


def test_a_video_that_was_cut_off_gives_what_there_is_and_is_named(tmp_path):
    rng = np.random.default_rng(0)
    write_video(tmp_path / 'whole.avi', [rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(40)])
    assert media.count({'whole': tmp_path / 'whole.avi'}) == 40
    content = (tmp_path / 'whole.avi').read_bytes()
    (tmp_path / 'cut.avi').write_bytes(content[: len(content) // 2])
    found, problems = read(tmp_path / 'cut.avi')
    assert 5 < len(found) < 35
    assert len(problems) == 1 and f'ends after {len(found)} of the 40 frames' in problems[0]


def test_what_a_path_stands_for(tmp_path, monkeypatch):
    image = tiny.png(tiny.scene((8, 8), seed=0)[0])
    for name in (
        'b/one.png',
        'b/two.jpg',
        'b/two.png',
        'b/.hidden.png',
        'c/[1].png',
        'c/notes.txt',
        'out/colors/x.png',
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(image)
    (tmp_path / 'b/folder.png').mkdir()
    out = [tmp_path / 'out/colors']
    assert names_of(tmp_path, leave_out=out) == ['b/one', 'b/two.jpg', 'b/two.png', 'c/[1]']
    assert names_of(tmp_path / 'b/*.png', leave_out=out) == ['one', 'two']
    assert names_of(tmp_path / 'c/[1].png', leave_out=out) == ['[1]']
    assert names_of(tmp_path / 'c/notes.txt', leave_out=out) == ['notes']  # named, so it is meant
    assert names_of(tmp_path / 'c/*.txt') == ['notes'] and names_of(tmp_path / 'c/*') == ['[1]']
    assert names_of(tmp_path / 'out', leave_out=[tmp_path / 'out']) == ['x']  # the very folder is meant
    monkeypatch.chdir(tmp_path)
    wanted = ['b/one', 'b/two.jpg', 'b/two.png', 'c/[1]']
    assert names_of('b', 'b/one.png', tmp_path / 'c', leave_out=out) == wanted
    for nothing in ('b/*.gif', 'nowhere', 'b/.hidden', '**/*.gif'):
        with pytest.raises(entry.UserError, match='no images there') as failure:
            media.find(['c', nothing], [], [], leave_out=out)
        assert failure.value.status == entry.MISSING_INPUT


def put(root: pathlib.Path, *names: str) -> pathlib.Path:
    content = tiny.png(tiny.scene((8, 8), seed=0)[0])
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_links_are_followed_by_folders_and_globs_and_loops_are_not(tmp_path, monkeypatch):
    put(tmp_path, 'elsewhere/ulm/1.png', 'photos/a/2.png', 'photos/3.png')
    photos = tmp_path / 'photos'
    (photos / 'city').symlink_to('../elsewhere/ulm')
    (photos / 'a/4.png').symlink_to('2.png')
    for name in ('a/loop', 'a/loop2', 'b'):
        (photos / name).symlink_to('.')
    wanted = ['3', 'a/2', 'a/4', 'city/1']
    assert names_of(photos) == names_of(photos / '**') == names_of(f'{tmp_path}/p*/**/*.png') == wanted
    assert names_of(photos / '**/[12].png') == names_of(photos / '*/**/[12].png') == ['a/2', 'city/1']
    assert names_of(photos / '*/*.png') == ['a/2', 'a/4', 'city/1']
    assert names_of(photos / 'city/../ulm/*.png') == ['1']
    monkeypatch.chdir(photos)
    assert names_of('**/*.png') == names_of('.') == wanted


def test_leftovers_are_passed_over_by_folders_and_globs_unless_they_are_named(tmp_path):
    left = ['.ipynb_checkpoints/1.png', '.thumbnails/large/1.png', '@eaDir/1.png', 'a/__MACOSX/a/1.png', 'a/._1.png']
    put(tmp_path, 'a/1.png', 'b/2.png', *left)
    for pattern in ('', '**/*.png', '*/**', '*/*.png', '**'):
        assert names_of(tmp_path / pattern) == ['a/1', 'b/2'], pattern
    assert names_of(tmp_path / '@eaDir') == names_of(tmp_path / '@eaDir/*.png') == ['1']
    assert names_of(tmp_path / '.ipynb*/*.png') == names_of(tmp_path / left[0]) == ['1']


def test_links_that_lead_nowhere_and_images_of_other_kinds_are_named(tmp_path):
    put(tmp_path, 'a.png', 'b/c.heic', 'b/d.JFIF', 'e.gif', 'b/notes.txt')
    (tmp_path / 'b/gone').symlink_to('/nowhere')
    (tmp_path / 'gone.jpg').symlink_to('none.jpg')
    for pattern in (tmp_path, tmp_path / '**'):
        problems, passed_over = [], []
        assert list(media.find([str(pattern)], problems, passed_over)) == ['a']
        assert sorted(pathlib.Path(name).name for name in passed_over) == ['c.heic', 'd.JFIF', 'e.gif']
        assert len(problems) == 2 and 'gone' in problems[0] and 'gone' in problems[1]
    found, problems = read(tmp_path / '*.jpg')
    assert not found and len(problems) == 1 and 'gone.jpg: No such file' in problems[0]
    passed_over = []
    with pytest.raises(entry.UserError, match='no images there'):
        media.find([str(tmp_path / 'e.*')], [], passed_over)
    assert passed_over == [str(tmp_path / 'e.gif')]


@pytest.mark.parametrize(
    'files, wanted',
    [
        (['a.jpg', 'a.png', 'b.jpg'], ['a.jpg', 'a.png', 'b']),
        (['a.jpg', 'a.jpg.png', 'a.png'], ['a.jpg', 'a.jpg.png', 'a.png']),
        (['drive.mp4', 'drive/000000.png'], ['drive.mp4', 'drive/000000']),
        (['c/drive.mp4', 'c/drive.mkv', 'c/drive.png', 'd/1.png'], ['c/drive.mkv', 'c/drive.mp4', 'c/drive', 'd/1']),
        (['drive.mp4', 'drive.png', 'drive.mp4.bmp'], ['drive.mp4', 'drive.png', 'drive.mp4.bmp']),
        (['drive.mp4', 'drive/drive.mp4'], ['drive.mp4', 'drive/drive']),
        (['x.jpg', 'x.png/1.jpg'], ['x.jpg', 'x.png/1']),
        (['v.jpg', 'v.png.mp4'], ['v.jpg', 'v.png.mp4']),
    ],
)
def test_results_do_not_overwrite_each_other(tmp_path, files, wanted):
    assert sorted(names_of(put(tmp_path, *files))) == sorted(wanted)
    sources = media.find([str(tmp_path)], [], [])
    results = {name if file.suffix in media.VIDEOS else f'{name}.png' for name, file in sources.items()}
    folders = {str(above) for result in results for above in pathlib.PurePath(result).parents}
    assert len(results) == len(files) and not results & folders


def test_results_that_would_overwrite_each_other_all_the_same_are_refused(tmp_path):
    with pytest.raises(entry.UserError, match='rename it') as failure:
        media.find([str(put(tmp_path, 'x.jpg', 'x.tif', 'x.jpg.png/1.png'))], [], [])
    assert failure.value.status == entry.BAD_USAGE


def test_whatever_a_decoder_raises_costs_one_image(tmp_path):
    """Damaged EXIF makes Pillow raise what is no OSError; whichever bytes are hit, the others are read."""
    image, rng = Image.fromarray(tiny.scene((24, 40), seed=0)[0]), np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, 'maker'
    exif.get_ifd(0x8769)[0x9003] = '2020:01:01'
    for number in range(60):
        path = tmp_path / f'{number:02d}.jpg'
        image.save(path, exif=exif)
        content = bytearray(path.read_bytes())
        content[rng.integers(20, 140)] = rng.integers(256)
        path.write_bytes(content)
    (tmp_path / 'range.jpg').write_bytes(path.read_bytes()[:20] + struct.pack('<IIII', 8, 2**31, 7, 9) * 9)
    put(tmp_path, 'zz.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found, problems = read(tmp_path)
    assert 'zz' in found and len(found) + len(problems) == 62 and problems


def test_batches_hold_neighbours_of_one_size():
    sizes = [(4, 4)] * 5 + [(4, 6)] + [(4, 4)] * 2
    images = [(str(number), np.zeros((*size, 3), np.uint8)) for number, size in enumerate(sizes)]
    batches = list(media.batched(iter(images), 2))
    assert [names for names, _ in batches] == [['0', '1'], ['2', '3'], ['4'], ['5'], ['6', '7']]
    assert [pictures.shape[:3] for _, pictures in batches] == [(2, 4, 4), (2, 4, 4), (1, 4, 4), (1, 4, 6), (2, 4, 4)]

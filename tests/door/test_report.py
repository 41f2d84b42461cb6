"""The page about a run: written at the end of training, whole in one file, and saying what the workdir says."""

import html.parser
import json
import re
import shutil
import sys
import xml.etree.ElementTree

import numpy as np
import pytest

from data_prep import labels, records
from launch import entry
from tests import tiny
from unet.reporting import charts, gallery

VOID = {'meta', 'link', 'img', 'br', 'hr', 'input'}


class Page(html.parser.HTMLParser):
    """Checks that elements are closed in order; gathers text, addresses and images."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.words, self.addresses, self.tags = [], [], [], []
        self.feed(text)
        assert self.open == [], self.open
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ('src', 'href', 'srcset', 'action', 'data')]
        assert not [name for name, _ in attributes if name.startswith('on')]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open and self.open[-1] != 'style':
            self.words.append(data)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Two runs that differ in one field, each with its report."""
    folder = tmp_path_factory.mktemp('runs')
    data_dir = tiny.write_folder(
        folder / 'records', train=tiny.scenes(6), validation=tiny.scenes(4, seed=1) + tiny.scenes(3, (33, 47), seed=2)
    )
    for name, width in (('<b>narrow', 4), ('wide', 6)):
        command = tiny.train_command(folder / name, data_dir, model__width=width, eval__pictures=2)
        done = tiny.run(command)
        assert done.returncode == 0 and 'report.html' in done.stdout, done.stderr
        assert 'mIoU' in done.stdout.splitlines()[-1]
    return folder


def test_page_of_a_run(trained):
    run = trained / '<b>narrow'
    text = (run / 'report.html').read_text()
    page = Page(text)
    assert all(address.startswith(('#', 'data:')) for address in page.addresses), page.addresses
    assert 'script' not in page.tags and 'url(' not in text and '@import' not in text
    assert '<b>narrow' in page.text and 'b' not in page.tags[: page.tags.index('h1') + 2]  # escaped
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    best = max((line for line in lines if line.get('eval/miou') is not None), key=lambda line: line['eval/miou'])
    assert f'mIoU {100 * best["eval/miou"]:.2f} %' in page.text and '12 of 12' in page.text
    for label in labels.classes(labels.CITYSCAPES):
        assert label.name in page.text
        share = best[f'eval/iou/{label.name}']
        assert share is None or f'{100 * share:.2f} %' in page.text
    assert page.text.count('mIoU of the classes present') == 1 and 'Host memory, peak' in page.text
    assert page.tags.count('svg') == 5 and page.tags.count('img') == 2 * 2 * 4
    shares = re.search(r'training that counts ([\d.]+) % .* starts ([\d.]+) % .* evaluations ([\d.]+) %', page.text)
    assert shares and all(float(share) > 0 for share in shares.groups())
    assert 'Of it training that counts' in page.text and 'Slowest worker' not in page.text
    assert 'model.width' in page.text and 'train 6 6 40×56' in page.text
    for svg in re.findall(r'<svg.*?</svg>', text, re.S):
        assert xml.etree.ElementTree.fromstring(svg).findall('.//polyline'), svg


def test_images_shown_are_the_best_and_the_worst(trained):
    """By scores of our own making: each image's confusion matrix, and the mean over its classes."""
    split = records.read_split(trained / 'records', 'validation')
    predict = gallery.predictor(str(trained / 'wide'), 'best')
    scores, total = gallery.score_images(predict, split, labels.CITYSCAPES, most=100)
    assert set(scores) == set(split.image_ids) and total.sum() == 4 * 40 * 56 + 3 * 33 * 47
    line = [json.loads(text) for text in (trained / 'wide/metrics.jsonl').read_text().splitlines()]
    correct = np.diag(total)[[label.id for label in labels.classes(labels.CITYSCAPES)]].sum()
    accuracy = max(own['eval/accuracy'] for own in line if 'eval/accuracy' in own)
    scored = total[[label.id for label in labels.classes(labels.CITYSCAPES)]].sum()
    assert correct / scored <= accuracy + 1e-9
    ranked = sorted(scores, key=lambda image_id: (scores[image_id], image_id))
    best, worst = gallery.best_and_worst([scores], 2)
    assert worst == ranked[:2] and best == ranked[::-1][:2]
    text = Page((trained / 'wide/report.html').read_text()).text
    places = [text.index(image_id) for image_id in (*worst, *best)]
    assert places == sorted(places) and all(text.count(other) == 0 for other in ranked[2:-2])
    best, worst = gallery.best_and_worst([scores], 100)
    assert sorted(best + worst) == sorted(scores)  # none twice
    nothing = scores | {ranked[0]: float('nan')}
    assert ranked[0] not in sum(gallery.best_and_worst([nothing], 100), [])


def test_page_after_an_evaluation_has_its_scores(trained):
    flags = [f'--workdir={trained}/wide', f'--data_dir={trained}/records']
    done = tiny.run([sys.executable, '-m', 'unet.evaluate', *flags])
    assert done.returncode == 0 and 'report.html' in done.stdout, done.stderr
    scores = json.loads((trained / 'wide/evaluate-validation.json').read_text())['scores']
    text = Page((trained / 'wide/report.html').read_text()).text
    assert 'unet.evaluate on 7 images' in text and f'mIoU {100 * scores["eval/miou"]:.2f} %' in text


def test_errors_are_red_where_a_pixel_that_counts_is_wrong(trained):
    split = records.read_split(trained / 'records', 'validation')
    counts = np.zeros(256, bool)
    counts[[label.id for label in labels.classes(labels.CITYSCAPES)]] = True

    def sky(image):
        return np.full(image.shape[:2], 23, np.uint8)

    (picture,) = gallery.draw(
        [split.image_ids[0]], [sky], [dict.fromkeys(split.image_ids, 0.5)], split, labels.CITYSCAPES, [counts]
    )
    truth = tiny.scenes(4, seed=1)[0][1]
    red = (picture.errors[0][..., 0] > 150) & (picture.errors[0][..., 1] < 120)
    np.testing.assert_array_equal(red, counts[truth] & (truth != 23))
    assert picture.image.shape == picture.truth.shape == picture.predictions[0].shape == (40, 56, 3)


def test_runs_side_by_side_and_runs_that_are_not_whole(trained, tmp_path):
    young = tmp_path / 'young'  # killed while it wrote its first metrics, before any checkpoint
    young.mkdir()
    for name in ('config.json', 'labels.json'):
        shutil.copy(trained / 'wide' / name, young / name)
    (young / 'metrics.jsonl').write_text('{"step": 3, "train/loss": 2.5}\n{"step": 6, "tr')
    done = tiny.run([sys.executable, '-m', 'unet.report', f'--workdir={young}'])
    assert done.returncode == 0 and 'without images' in done.stdout, done.stderr
    page = Page((young / 'report.html').read_text())
    assert '3 of 12' in page.text and page.tags.count('img') == 0
    flags = [f'--workdir={trained}/<b>narrow', f'--workdir={trained}/wide', f'--output={tmp_path}/both.html']
    done = tiny.run([sys.executable, '-m', 'unet.report', *flags, f'--data_dir={trained}/records', '--shown=1'])
    assert done.returncode == 0, done.stderr
    page = Page((tmp_path / 'both.html').read_text())
    assert page.tags.count('img') == 2 * (2 + 2 * 2) and 'model.width 64 4 6' in page.text
    assert page.tags.count('polyline') >= 2 * 4
    (tmp_path / 'damaged').mkdir()
    (tmp_path / 'damaged/config.json').write_text('{"seed": ')
    flags = [
        f'--workdir={tmp_path}/damaged',
        f'--workdir={trained}/wide',
        f'--workdir={young}',
        f'--workdir={tmp_path}/no',
    ]
    done = tiny.run([sys.executable, '-m', 'unet.report', *flags, f'--output={tmp_path}/left.html'])
    assert done.returncode == entry.BAD_DATA and 'Traceback' not in done.stderr
    assert 'damaged/config.json' in done.stderr and f'{tmp_path}/no' in done.stderr
    assert {'wide', 'young'} <= set(Page((tmp_path / 'left.html').read_text()).text.split())


def test_mistakes_get_one_line_and_a_status(trained, tmp_path):
    cases = [
        ([], entry.BAD_USAGE, '--workdir'),
        ([f'--workdir={tmp_path}'], entry.MISSING_INPUT, 'config.json'),
        ([f'--workdir={trained}/wide', f'--workdir={trained}/./wide'], entry.BAD_USAGE, 'twice'),
        ([f'--workdir={trained}/wide', f'--data_dir={tmp_path}'], entry.MISSING_INPUT, '--data_dir'),
    ]
    for flags, status, text in cases:
        done = tiny.run([sys.executable, '-m', 'unet.report', *flags])
        assert done.returncode == status, (flags, done.returncode, done.stderr)
        assert text in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr, (flags, done.stderr)


def test_axes_have_round_ticks_that_span_the_values():
    for low, high in ((0, 1), (1.0627, 2.178), (-3, 17), (0.00012, 0.0038), (5, 5), (0, 0), (2e5, 160e3 * 9)):
        ticks = charts.ticks(low, high)
        steps = np.diff(ticks)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8
        np.testing.assert_allclose(steps, steps[0])
        assert float(f'{steps[0]:.1e}') == pytest.approx(steps[0])  # two digits say it all
    assert charts.number(40_000) == '40k' and charts.number(0.25) == '0.25' and charts.number(2e-5) == '2e-05'


def test_lines_are_broken_where_values_are_missing_and_thinned_by_averaging():
    steps = list(range(10))
    values = [1.0, 2.0, None, 3.0, float('nan'), 4.0, 5.0, 6.0, 7.0, 8.0]
    root = xml.etree.ElementTree.fromstring(charts.lines({'a<b': (steps, values)}))
    lines = [line.get('points').split() for line in root.iter('polyline')]
    assert [len(line) for line in lines] == [2, 5]
    notes = [title.text for title in root.iter('title')]
    assert len(notes) == 8 and notes[0] == 'a<b: 1 at step 0'
    many = charts.lines({'many': (range(100_000), [float(step % 2) for step in range(100_000)])})
    points = xml.etree.ElementTree.fromstring(many).find('.//polyline').get('points').split()
    heights = {point.split(',')[1] for point in points}
    assert len(points) <= 300 and len(heights) == 1  # of zeros and ones in turn the mean is the same everywhere
    assert charts.lines({'nothing': ([1, 2], [None, None])}) == ''

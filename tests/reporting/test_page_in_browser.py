"""The report as a browser shows it: light, dark and on a narrow screen."""

import sys

import pytest

from tests import browser, tiny

# Of each piece of text that is shown: its size, its contrast by WCAG 2 (1.4.3), what it says, where, and its colours.
CONTRASTS = """(() => {
  document.querySelectorAll('details').forEach(part => part.open = true);
  const brush = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
    .getContext('2d', {willReadFrequently: true});
  const channels = color => {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = color;
    brush.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = element => {
    if (!element) return channels(matchMedia('(prefers-color-scheme: dark)').matches ? '#000' : '#fff');
    const own = channels(getComputedStyle(element).backgroundColor);
    return own[3] == 1 ? own : over(own, behind(element.parentElement));
  };
  const luminance = color => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const c = color[i] / 255;
    return sum + weight * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  }, 0);
  const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, style = getComputedStyle(element);
    if (!texts.currentNode.data.trim() || element.closest('title') || !element.checkVisibility()) continue;
    const ground = behind(element), ink = over(channels(element.closest('svg') ? style.fill : style.color), ground);
    const [light, dark] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
    const drawing = element.closest('svg'), scale = drawing ? drawing.clientWidth / drawing.viewBox.baseVal.width : 1;
    found.push({pixels: scale * parseFloat(style.fontSize), contrast: (light + 0.05) / (dark + 0.05),
      text: texts.currentNode.data.trim().slice(0, 40), at: element.tagName + '.' + element.className, ink, ground});
  }
  return found;
})()"""
# Every share that a cell of a confusion matrix may have.
SHARES = """document.querySelectorAll('.matrix td').forEach((cell, number) => {
  cell.style.setProperty('--v', number % 11 / 10);
  cell.textContent = number % 11;
})"""
IMAGES = '[...document.images].map(image => image.complete && image.naturalWidth > 0)'
WIDTH = 'document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth'


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
    """The report of a run, and of that and another side by side."""
    if browser.PROGRAM is None:
        pytest.skip('there is no Chromium: apt-get install chromium')
    folder = tmp_path_factory.mktemp('runs')
    data_dir = tiny.write_folder(
        folder / 'records', train=tiny.scenes(6, (64, 128)), validation=tiny.scenes(4, (64, 128), seed=1)
    )
    for name, width in (('narrow', 4), ('wide', 6)):
        done = tiny.run(tiny.train_command(folder / name, data_dir, model__width=width, eval__pictures=2))
        assert done.returncode == 0, done.stderr
    flags = [f'--workdir={folder}/narrow', f'--workdir={folder}/wide', f'--data_dir={data_dir}']
    done = tiny.run([sys.executable, '-m', 'unet.report', *flags, f'--output={folder}/both.html'])
    assert done.returncode == 0, done.stderr
    return [folder / 'narrow/report.html', folder / 'both.html']


def test_a_browser_shows_it_well(reports):
    for report in reports:
        with browser.open_page(report) as shown:
            for width, dark in ((1280, False), (1280, True), (400, False), (400, True)):
                shown.show(width=width, dark=dark)
                where = report.name, width, dark
                images = shown.evaluate(IMAGES)
                assert images and all(images), where
                shown.evaluate(SHARES)
                texts = shown.evaluate(CONTRASTS)
                assert len(texts) > 100, where
                faint = [text for text in texts if text['contrast'] < 4.5]
                assert not faint, (where, faint[:10])
                assert min(text['pixels'] for text in texts) >= 9, where
                assert shown.evaluate(WIDTH) == 0, where  # nobody has to scroll sideways
                assert shown.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == dark
            assert shown.messages == [] and shown.requests == []

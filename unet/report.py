"""Writes a self-contained HTML page about a run, or about several side by side.

    python -m unet.report --workdir=runs/cityscapes
    python -m unet.report --workdir=runs/a --workdir=runs/b --data_dir=data/cityscapes --output=compared.html

Curves, scores per class, confusion matrix, the images that go best and worst and where the model errs, data, config,
speed and memory. The page opens offline and needs no script. unet.main and unet.evaluate write it when they are done.
Of several runs those that cannot be read are left out, and named at the end.
"""

import os

from absl import flags

from launch import entry, host, progress

_WORKDIR = flags.DEFINE_multi_string('workdir', [], 'Folder of a run; required, may be repeated to compare runs.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, 'Record folder, for images and data summary; default data/cityscapes, if it is there.'
)
_SPLIT = flags.DEFINE_string('split', 'validation', 'Split whose images are shown.')
_IMAGES = flags.DEFINE_integer(
    'images', 100, 'Images predicted to find the best and worst, evenly over the split.', lower_bound=1
)
_SHOWN = flags.DEFINE_integer('shown', 4, 'Images shown of the best and of the worst; 0: none.', lower_bound=0)
_OUTPUT = flags.DEFINE_string('output', None, 'The HTML file; default report.html in the (first) workdir.')


def main() -> None:
    if not _WORKDIR.value:
        raise entry.UserError(entry.BAD_USAGE, 'pass --workdir, the folder of a run of unet.main')
    if len(set(map(os.path.realpath, _WORKDIR.value))) < len(_WORKDIR.value):
        raise entry.UserError(entry.BAD_USAGE, '--workdir: the same run is given twice')
    data_dir = _DATA_DIR.value
    if data_dir is None:
        data_dir = 'data/cityscapes'
        if not os.path.exists(data_dir):
            print(f'no records in {data_dir}: a page without images; pass --data_dir to have them', flush=True)
            data_dir = None
    with host.quiet_import():
        from unet.reporting import page, runs

    readable, problems = [], []
    for workdir in _WORKDIR.value:
        try:
            runs.read([workdir], _SPLIT.value)
            readable.append(workdir)
        except entry.UserError as error:
            problems.append(error)
    if not readable:
        raise entry.UserError(problems[0].status, '\n'.join(map(str, problems)))
    default = 'report.html' if len(_WORKDIR.value) == 1 else 'comparison.html'
    output = _OUTPUT.value or os.path.join(readable[0], default)
    if _OUTPUT.value:
        output = os.path.join(output, default) if os.path.isdir(output) or output.endswith('/') else output
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)

    with progress.show(_IMAGES.value * len(readable), 'image') as on_progress:
        page.write(
            readable,
            output,
            data_dir=data_dir,
            split=_SPLIT.value,
            images=_IMAGES.value,
            count=_SHOWN.value,
            on_progress=lambda: on_progress(1),
        )
    print(output)
    if problems:
        raise entry.UserError(entry.BAD_DATA, '\n'.join(['left out of the page:', *map(str, problems)]))


if __name__ == '__main__':
    entry.run(main)

"""What benchmarks.gpu runs, cell by cell, and how its figures read in a table.

for cell in cells.plan(pathlib.Path('gpu'), [1, 8], miniature=False, cityscapes_dir=None):
    print(cell.name, *cell.command)
"""

import dataclasses
import pathlib
from collections.abc import Iterator

from configs import default

PARTS = (
    *('ceilings', 'records', 'preflight', 'step', 'fit', 'loading', 'calls', 'scaling', 'trace', 'rerun', 'leak'),
    *('largest', 'grid'),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A program to run.

    Attributes:
      name: what it measures.
      part: of PARTS.
      command: module and arguments; {seconds} and {steps} stand for how long to measure.
      output: the JSON file that it writes.
      devices: number of GPUs that it sees.
    """

    name: str
    part: str
    command: tuple[str, ...]
    output: pathlib.Path
    devices: int = 1


def plan(folder: pathlib.Path, counts: list[int], miniature: bool, cityscapes_dir: str | None) -> list[Cell]:
    """Returns all cells, those that matter most first.

    Args:
      folder: where they write.
      counts: numbers of devices or workers to compare, in order.
      miniature: whether models, images and cells are to be as small as they can.
      cityscapes_dir: dataset that records are made of; None: a synthetic one, which is made first.
    """
    small = ('model.width=2', 'model.depth=3', 'data.crop=(32,64)', 'global_batch=4') if miniature else ()
    off = ('runtime.jit_compile=off',) if miniature else ()  # compiling on a CPU takes longer than all else
    png, jpeg, most = folder / 'png', folder / 'jpeg', counts[-1]
    cells: list[Cell] = []

    def config(*fields: str, name: str = 'cityscapes') -> tuple[str, ...]:
        given = dict(field.split('=', 1) for field in (*small, *off, *fields))
        return (f'--config=configs/{name}.py', *(f'--config.{field}={value}' for field, value in given.items()))

    def add(part: str, name: str, *command: str, devices: int = 1, flag: str = 'output') -> None:
        place = folder / 'cells' / name.replace(' ', '_')
        output = place / 'benchmark.json' if flag == 'workdir' else place.with_suffix('.json')
        given = {'output': [f'--output={output}'], 'workdir': [f'--workdir={place}'], '': []}[flag]
        head = command[:1] if command[0] != 'launch.local' else command[: command.index('--') + 1]
        cells.append(Cell(name, part, (*head, *given, *command[len(head) :]), output, devices))

    def benchmark(part: str, name: str, parts: str, *arguments: str, devices: int = 1) -> None:
        timed = ('--seconds={seconds}', f'--parts={parts}', *arguments)
        add(part, name, 'unet.benchmark', *timed, devices=devices, flag='workdir')

    add('ceilings', 'ceilings', 'benchmarks.ceilings')
    source = cityscapes_dir or str(folder / 'dataset')
    if cityscapes_dir is None:
        size, images = ('--size=128x256', 8) if miniature else ('--size=1024x2048', 64)
        drawn = (f'--cityscapes_dir={source}', f'--train_images={images}', f'--val_images={images // 2}', size)
        add('records', 'dataset', 'data_prep.synthesize', *drawn, flag='')
    for kind, data in (('png', png), ('jpeg', jpeg)):
        form = ['--image_format=jpeg'] if kind == 'jpeg' else []
        build = (f'--cityscapes_dir={source}', f'--data_dir={data}', *form)
        add('records', f'records {kind}', 'data_prep.build_tfrecords', *build, flag='')

    preflight = ('unet.preflight', '--selfcheck', '--json', f'--data_dir={png}', f'--workdir={folder / "run"}')
    add('preflight', 'preflight', *preflight, *config(), devices=most, flag='')
    benchmark('step', 'step cityscapes bfloat16 XLA', 'step', *config('runtime.jit_compile=on'))
    benchmark('step', 'step cityscapes bfloat16', 'step', *config('runtime.jit_compile=off'))
    jit = '--jit_compile=off' if miniature else '--jit_compile=off,on'
    rounds = ('--sides=fit,ours', jit, '--rounds=3', '--steps=2' if miniature else '--steps=10')
    add('fit', 'fit', 'benchmarks.step', *rounds, *config('loss.auxiliary=0.0'))  # `fit` is given one head
    parts = 'input_pipeline,step,end_to_end,predict,evaluate'
    benchmark('loading', 'loading png', parts, *config(), f'--data_dir={png}')
    benchmark('loading', 'loading jpeg', 'input_pipeline,step,end_to_end', *config(), f'--data_dir={jpeg}')
    for calls in (1, 10):
        benchmark('calls', f'{calls} steps per call', 'step', *config(f'runtime.steps_per_call={calls}'))
    if most > 1:
        scale = (f'--scale={",".join(map(str, counts))}', *config(*([f'global_batch={2 * most}'] if miniature else [])))
        benchmark('scaling', 'scaling', 'step', *scale, devices=most)
        workers = ('launch.local', f'--workers={most}', '--module=unet.benchmark')
        step = ('--seconds={seconds}', '--parts=step', *config(f'global_batch={2 * most}'))
        place = folder / 'cells' / 'workers'
        command = (*workers, f'--workdir={place}', '--', *step)
        cells.append(Cell('workers', 'scaling', command, place / 'benchmark.json', most))
    virtual = ['runtime.virtual_devices=2', 'runtime.jit_compile=auto'] if miniature else []
    traced = (f'--data_dir={png}', '--steps={steps}')
    add('trace', 'trace', 'benchmarks.trace', *traced, *config(*virtual), devices=most)
    steps = '--steps=6' if miniature else '--steps=30'
    add('rerun', 'rerun', 'benchmarks.rerun', f'--data_dir={png}', steps, *config(), devices=most)
    leaky = config('model.width=2', 'data.crop=(32,64)', f'global_batch={2 * most}', 'runtime.jit_compile=off')
    steps = '--steps=60' if miniature else '--steps=500'
    add('leak', 'leak', 'benchmarks.leak', steps, *leaky, devices=most)
    if most > 1:
        workers = ('launch.local', f'--workers={most}', '--module=benchmarks.leak', '--')
        add('leak', 'leak of workers', *workers, steps, *leaky, devices=most)
    fitting = (f'global_batch={8 if miniature else 256}', 'runtime.microbatches=0')
    benchmark('largest', 'largest batch', 'step', *config(*fitting))
    for name, fields in _grid(miniature):
        benchmark('grid', f'step {name} {" ".join(label for label, _ in fields)}', 'step',
                  *config(*(field for _, field in fields if field), name=name))  # fmt: skip
    return cells


def _grid(miniature: bool) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Config and (label, field) of each way to compute a step, but for those of the part 'step'."""
    precisions = [[(name, f'precision={name}')] for name in ('bfloat16', 'float16', 'float32')]
    if 'runtime.tf32' in default.FIELDS:
        precisions[-1:] = [
            [('float32', 'precision=float32'), (f'TF32 {tf32}', f'runtime.tf32={tf32}')] for tf32 in (True, False)
        ]
    for name in ('cityscapes', 'cityscapes_256'):
        for precision in precisions:
            for jit in ('off',) if miniature else ('on', 'off'):
                for recompute in (False, True):
                    if miniature and recompute != (name == 'cityscapes_256'):
                        continue
                    if (name, precision[0][0], recompute) != ('cityscapes', 'bfloat16', False):
                        again = [('recomputed', 'runtime.recompute=True')] if recompute else []
                        label = 'XLA' if jit == 'on' else 'no XLA'
                        yield name, [*precision, (label, f'runtime.jit_compile={jit}'), *again]


def rows(name: str, found: dict) -> Iterator[tuple[str, str]]:
    """Yields what the table says of a cell: what, and the figures in words."""
    if 'conditions' in found:
        for part, figures in found.items():
            if part != 'conditions':
                yield f'{name}: {part}', _speed(part, figures, found)
    elif name == 'scaling':
        for count, of_count in found.items():
            yield f'{name}: {count}', _speed('step', of_count['step'], of_count)
    elif name == 'ceilings':
        products = found['matrix_flops_per_second'].items()
        yield 'copying', f'{found["bytes_per_second"] / 1e9:.1f} GB/s'
        yield 'matrix product', ', '.join(f'{key} {flops / 1e12:.3f} TFLOP/s' for key, flops in products)
    elif name == 'preflight':
        for check in found['checks']:
            yield f'{name}: {check["name"]}', ('' if check['passed'] else 'FAILED: ') + check['found'].replace('|', '/')
    elif name == 'fit':
        median, lowest, highest = found['ratios']['ours / fit']
        yield "the step's time beside that of Keras's `fit`", f'{median:.2f} ({lowest:.2f} to {highest:.2f})'
    elif name == 'rerun':
        for key in ('rerun', 'resumed'):
            differ = len(found[f'{key}_differs'])
            yield key, f'{differ} values differ' if differ else 'bit-identical'
    elif name == 'trace':
        for plane, shares in found.items():
            yield f'{name}: {plane}', ', '.join(f'{key} {100 * share:.1f} %' for key, share in shares.items())
    else:
        yield name, f'{max(found["bytes_per_step"]) / 1024:.2f} KiB per step'


def _speed(part: str, figures: dict, found: dict) -> str:
    conditions = found['conditions']
    text = f'{figures["images_per_second"]:.2f} images/s, {figures["milliseconds"]:.1f} ms'
    if part in ('step', 'no_communication'):
        share = (
            figures['images_per_second'] * conditions['step_flops_per_image'] / conditions['matrix_flops_per_second']
        )
        peak, estimate = figures['peak_bytes'] / 2**30, conditions['estimated_peak_bytes'] / 2**30
        text += f', {100 * share:.0f} % of the matrix product; {peak:.2f} GiB, estimated {estimate:.2f}'
        runtime = conditions['config']['runtime']
        if runtime['microbatches'] > 1:
            images = conditions['global_batch'] // conditions['devices'] // runtime['microbatches']
            text += f'; {images} images at a time'
    if part == 'end_to_end' and 'step' in found:
        text += f', {100 * figures["images_per_second"] / found["step"]["images_per_second"]:.0f} % of the step alone'
    return text

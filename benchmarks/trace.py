"""Says from a profiler trace for which share of the time devices normalise, sum and idle.

    python -m benchmarks.trace --config=configs/cityscapes.py --data_dir=data/cityscapes

It trains for --steps steps and traces the second half. On GPUs the kernels of all streams count. On a CPU the threads
that run operations stand in for a device: sums that wait in none of them are not seen. Where XLA compiles the whole
step, as on one device, normalisation is part of kernels that do more, and is not told apart.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable

from absl import flags

from launch import entry, host
from unet import config_flag

flags.adopt_module_key_flags(config_flag)  # so that --help lists --config
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder.')
_STEPS = flags.DEFINE_integer('steps', 60, 'Steps to take.', lower_bound=4)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the figures.')

_NORM = ('_piece_', 'FusedBatchNorm')  # compiled pieces are modules named after batch_norm.make_piece's function
_SUMS = ('nccl', 'Nccl', 'AllReduce', 'all-reduce', 'CollectiveReduce')
_SCHEDULING = ('ThreadpoolListener', 'ExecutorState', 'end: ')


def main() -> None:
    config_flag.checked()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, '-m', 'unet.main', *config_flag.arguments(sys.argv[1:])),
            *(f'--data_dir={_DATA_DIR.value}', f'--workdir={folder}', f'--config.num_steps={_STEPS.value}'),
            f'--config.profile.steps=({_STEPS.value // 2},{_STEPS.value})',
            f'--config.eval.every_steps={_STEPS.value}',
        ]
        status = subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ).returncode
        if status:
            raise entry.UserError(max(status, entry.BUG), f'unet.main ended with status {status}, for the reason above')
        with host.quiet_import():
            figures = {
                plane: shares for file in pathlib.Path(folder).rglob('*.xplane.pb') for plane, shares in _read(file)
            }
    if not figures:
        raise entry.UserError(entry.BUG, 'the trace shows nothing that a device computed')
    for plane, shares in figures.items():
        print(f'{plane}: ' + ', '.join(f'{name} {100 * share:.1f} %' for name, share in shares.items()))
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + '\n')


def _read(file: pathlib.Path) -> Iterable[tuple[str, dict[str, float]]]:
    """Yields the name of each device and its shares."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(file.read_bytes())
    devices = [plane for plane in space.planes if plane.name.startswith('/device:GPU') and plane.lines]
    for plane in devices or [plane for plane in space.planes if plane.name == '/host:CPU']:
        kept = 'Stream' if devices else ('tf_Compute', 'tf_numa', 'tf_XLA')
        spans: dict[str, list[tuple[int, int]]] = {'busy': [], 'normalisation': [], 'sums': []}
        for line in plane.lines:
            if not line.name.startswith(kept):
                continue
            for event in line.events:
                words = _words(plane, event)
                if words.startswith(_SCHEDULING):
                    continue
                start = line.timestamp_ns * 1000 + event.offset_ps
                span = (start, start + event.duration_ps)
                spans['busy'].append(span)
                for name, signs in (('normalisation', _NORM), ('sums', _SUMS)):
                    if any(sign in words for sign in signs):
                        spans[name].append(span)
        if spans['busy']:
            whole = max(end for _, end in spans['busy']) - min(start for start, _ in spans['busy'])
            shares = {name: covered(found) / whole for name, found in spans.items()}
            yield plane.name, shares | {'idle': 1 - shares['busy']}


def _words(plane, event) -> str:
    """The name of an event, and what it says of itself: the module, the operation."""
    stats = (stat.str_value or plane.stat_metadata[stat.ref_value].name for stat in event.stats)
    return ' '.join([plane.event_metadata[event.metadata_id].name, *filter(None, stats)])


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """Returns the length of the union of intervals (start, end)."""
    total, reached = 0, None
    for start, end in sorted(spans):
        if reached is None or end > reached:
            total += end - (start if reached is None else max(start, reached))
            reached = end
    return total


if __name__ == '__main__':
    entry.run(main)

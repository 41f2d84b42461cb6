"""Record folders of a few small images, written with the real record writer, and the real programs run on them."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from PIL import Image

from data_prep import records, tfrecord
from tests import forked

ROOT = pathlib.Path(__file__).parent.parent


def png(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, 'PNG')
    return content.getvalue()


def scene(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [h, w, 3] and label ids uint8 [h, w]: blocks of a few classes and void; colour tells which."""
    rng = np.random.default_rng(seed)
    ids = np.array([0, 7, 8, 11, 21, 23, 26], np.uint8)
    label = ids[rng.integers(0, len(ids), (-(-size[0] // 8), -(-size[1] // 8)))].repeat(8, 0).repeat(8, 1)
    label = np.ascontiguousarray(label[: size[0], : size[1]])
    image = label[..., None] * np.array([7, 5, 3], np.uint8) + rng.integers(0, 8, (*size, 3), dtype=np.uint8)
    return image, label


def scenes(count: int, size: tuple[int, int] = (40, 56), seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    return [scene(size, seed * 1000 + number) for number in range(count)]


def write_folder(
    folder: pathlib.Path, labelled: bool = True, **splits: list[tuple[np.ndarray, np.ndarray]]
) -> pathlib.Path:
    """A record folder of two shards per split from (image, label) pairs; image ids are '<split>_<number>'."""
    folder.mkdir(parents=True, exist_ok=True)
    declared = []
    for split, pairs in splits.items():
        shards = []
        for number, part in enumerate(np.array_split(np.arange(len(pairs)), 2)):
            content, rows = b'', []
            for place in part:
                image, label = pairs[place]
                name = f'{split}_{place:03d}'
                features = {'image_id': name.encode(), 'image_left': png(image), 'segmentation_label': png(label)}
                example = b''.join(tfrecord.serialize_parts(features))
                rows.append([len(content), len(example), *label.shape, int(labelled), name])
                content += tfrecord.frame(example)
            file = f'cityscapes-{split}.tfrecord-{number:05d}-of-00002'
            (folder / file).write_bytes(content)
            shards.append({'file': file, 'bytes': len(content), 'records': rows})
        (folder / records.index_file(split)).write_text(records.format_index(split, shards))
        declared.append({'name': split, 'shardLengths': [str(len(shard['records'])) for shard in shards]})
    (folder / records.DATASET_INFO).write_text(json.dumps({'name': 'cityscapes', 'splits': declared}))
    return folder


SMALL_RUN = {
    'num_steps': 12,
    'global_batch': 4,
    'data.crop': '(32,32)',
    'model.width': 4,
    'model.depth': 3,
    'eval.every_steps': 6,
    'eval.pictures': 1,
    'checkpoint.every_steps': 3,
    'log.every_steps': 3,
    'runtime.deterministic': True,
    'runtime.jit_compile': 'off',
}


def train_command(workdir, data_dir, config='configs/default.py', **fields) -> list[str]:
    """The command line of a small run; `fields` are config fields with dots written as double underscores."""
    values = SMALL_RUN | {name.replace('__', '.'): value for name, value in fields.items()}
    flags = [f'--config.{name}={value}' for name, value in values.items()]
    command = [
        sys.executable,
        '-m',
        'unet.main',
        f'--config={config}',
        f'--workdir={workdir}',
        f'--data_dir={data_dir}',
    ]
    return command + flags


def run(command: list[str], **environ) -> subprocess.CompletedProcess:
    """Runs a command to its end. Those of unet/ are forked where TensorFlow is there already; the rest start anew."""
    if command[:2] == [sys.executable, '-m'] and command[2].startswith('unet.') and not environ:
        return forked.run(command[2], command[3:], cwd=ROOT, timeout=600)
    return subprocess.run(command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, timeout=600)


def run_code(code: str, *arguments: str, **environ) -> subprocess.CompletedProcess:
    """Runs code in a Python of its own, which ends as programs do: TensorFlow takes up to a minute to clean up."""
    return run([sys.executable, '-c', f'{code}\nfrom launch import entry\nentry._exit(0)\n', *arguments], **environ)


def checkpoint_values(prefix: str) -> dict[str, np.ndarray]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if not name.startswith(('save_counter', '_CHECKPOINTABLE'))
    }


def on_workers(count: int, command: list[str]) -> list[str]:
    """The same command on several worker processes of this host."""
    return [sys.executable, '-m', 'launch.local', f'--workers={count}', '--', *command[3:]]


def largest_difference(one: pathlib.Path, other: pathlib.Path, step: int) -> float:
    """Between the weights, statistics and their running means of two runs after a step."""
    first, second = (checkpoint_values(run / f'checkpoints/ckpt-{step}') for run in (one, other))
    assert first.keys() == second.keys()
    compared = [name for name in first if name.startswith(('model/', 'state/ema'))]
    return max(float(np.abs(first[name] - second[name]).max()) for name in compared)


def worker(launcher: int, rank: int) -> int:
    """The process of one rank below launch.local's, as soon as it is there."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for child in subprocess.run(['pgrep', '-P', str(launcher)], capture_output=True, text=True).stdout.split():
            with contextlib.suppress(OSError), open(f'/proc/{child}/environ') as environ:
                if f'UNET_RANK={rank}' in environ.read().split('\0'):
                    return int(child)
        time.sleep(0.02)
    raise AssertionError(f'no rank {rank} below {launcher}')

"""Scores a run's checkpoint on a split, every image at its original size, by the official Cityscapes rules.

    python -m unet.evaluate --workdir=runs/cityscapes --data_dir=data/cityscapes --checkpoint=best
    python -m unet.evaluate --workdir=runs/cityscapes --window=512x1024 --scales=0.75,1,1.25 --flip
    python -m unet.evaluate --workdir=runs/cityscapes --submission_dir=submission

Prints a table per class and writes evaluate-<split>.json (every score, the confusion matrix, each image's score) and
confusion-<split>.png to the workdir, or to --output_dir; a workdir that may only be read is scored all the same.
--cityscapes_dir, which holds the instance files, adds the
instance-weighted iIoU. --submission_dir writes and checks the files for the benchmark server, of the split test
unless --split is given, and packs them into <submission_dir>.zip. Of several processes (launch.local
--module=unet.evaluate, or a cluster) each predicts its share of the images.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from absl import flags

from launch import entry, host, progress
from unet.inference import options

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict

    from data_prep import labels, records, source_files
    from unet.distributed import process_group, shutdown
    from unet.evaluation import accumulator

Result = TypeVar('Result')

_MAY_ONLY_BE_READ = (errno.EACCES, errno.EPERM, errno.EROFS)

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; required.')
_DATA_DIR = flags.DEFINE_string('data_dir', 'data/cityscapes', 'Record folder.')
_SPLIT = flags.DEFINE_string('split', None, 'Split to score; default validation, or test with --submission_dir.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', "'best', 'latest', or the path of a checkpoint (without .index)."
)
_BATCH = flags.DEFINE_integer('batch', None, 'Images per device; default config.eval.batch.', lower_bound=1)
_CITYSCAPES_DIR = flags.DEFINE_string(
    'cityscapes_dir', None, 'Folder with gtFine (or its zip): scores instances too, by *_gtFine_instanceIds.png.'
)
_WINDOW = flags.DEFINE_string(
    'window',
    None,
    'Height x width in pixels, e.g. 512x1024: predict by a sliding window of this size, blended at the seams. An '
    'unpadded model always predicts by tiles; this is then the size of its input.',
)
_OVERLAP = flags.DEFINE_float(
    'overlap', 0.25, 'Least share of a window that the next one overlaps.', lower_bound=0, upper_bound=0.75
)
_SCALES = flags.DEFINE_list(
    'scales', ['1'], 'Test-time augmentation: average the predictions at these sizes of the image, 1 being its own.'
)
_FLIP = flags.DEFINE_bool('flip', False, 'Test-time augmentation: average with predictions of the mirrored image.')
_OUTPUT_DIR = flags.DEFINE_string(
    'output_dir', None, 'Folder for the scores; default the workdir, whose report is written anew too.'
)
_SUBMISSION_DIR = flags.DEFINE_string('submission_dir', None, 'Folder for the files for the benchmark server.')


def main() -> None:
    host.ignore_broken_pipes()
    if not _WORKDIR.value:
        raise entry.UserError(entry.BAD_USAGE, 'pass --workdir, the folder of a run of unet.main')
    scales = options.parse_scales(_SCALES.value)

    with host.quiet_import():
        from data_prep import records
        from unet.distributed import shutdown
        from unet.evaluation import instance_iou, predict_split, submission
        from unet.training import workdir

    config = workdir.read_config(_WORKDIR.value)
    workdir.check_labels(_WORKDIR.value, records.read_label_table(_DATA_DIR.value), _DATA_DIR.value)
    if _OUTPUT_DIR.value:
        os.makedirs(_OUTPUT_DIR.value, exist_ok=True)
    window = (0, 0)
    if _WINDOW.value:
        window = options.parse_window(_WINDOW.value, config.model.depth, config.model.padding, config.model.stem)
    inference = options.InferenceOptions(window, _OVERLAP.value, scales, _FLIP.value)
    split = records.read_split(_DATA_DIR.value, _SPLIT.value or ('test' if _SUBMISSION_DIR.value else 'validation'))
    scored = not _SUBMISSION_DIR.value or bool(split.labelled.all())
    if scored:
        predict_split.check_labelled(split)
    if _SUBMISSION_DIR.value:
        submission.prepare(_SUBMISSION_DIR.value, split, records.read_manifest(_DATA_DIR.value))
    instance_files = None
    if _CITYSCAPES_DIR.value and scored:
        instance_files = instance_iou.find(_CITYSCAPES_DIR.value, split.image_ids)
    with shutdown.StopRequest(config.runtime.grace_seconds) as stop:
        try:
            _evaluate(config, split, inference, scored, instance_files, stop)
        except predict_split.Interrupted:
            raise entry.UserError(
                entry.STOPPED, 'stopped on request; nothing was scored, the same command starts over'
            ) from None


def _evaluate(
    config: 'ConfigDict',
    split: 'records.Split',
    inference: options.InferenceOptions,
    scored: bool,
    instance_files: 'dict[str, source_files.File] | None',
    stop: 'shutdown.StopRequest',
) -> None:
    """Predicts the split on all processes, and writes the scores, the submission, or both.

    Args:
      config: the run's.
      split: the images to predict.
      inference: the sliding window and test-time augmentation.
      scored: whether to compare with the labels of the split.
      instance_files: each image's, of `instance_iou.find`; None: instances are not scored.
      stop: becomes true when the program is to stop.
    """
    import tensorflow as tf

    from unet.distributed import cluster
    from unet.evaluation import accumulator, instance_iou, predict_split, submission
    from unet.inference import build as inference_build
    from unet.reporting import page
    from unet.training import device_memory, restore

    runtime = config.runtime
    with cluster.join(
        virtual_devices=runtime.virtual_devices,
        peer_seconds=runtime.peer_seconds,
        stall_seconds=runtime.stall_seconds,
        stop=stop,
        compare=[(f'the split {split.name}', split.digest(), 'give all ranks the same records')],
    ) as joined:
        group, strategy, stall = joined.group, joined.strategy, joined.stall
        with strategy.scope():
            config, table, model, path = restore.trained(_WORKDIR.value, _CHECKPOINT.value)
        group.check_equal('the checkpoint', path, 'the workdir must be on a filesystem that all hosts share')
        if instance_files:
            instance_iou.check_classes(table)
        batch = _BATCH.value or config.eval.batch
        compiled = inference_build.jit_predictions(config)
        found = predict_split.predictions(
            strategy,
            inference_build.predictor(config, model, table, inference, jit_windows=compiled),
            split,
            batch=batch,
            jit_compile=compiled and not inference.slides(config.model.padding),
            stop=lambda: bool(stop),
        )
        files = submission.paths(_SUBMISSION_DIR.value, split) if _SUBMISSION_DIR.value else None

        def write_and_count(example: int, truth, prediction) -> accumulator.Counts | None:
            if files:
                submission.write(files[example], prediction)
            if scored:
                return accumulator.count_image(split.image_ids[example], truth, prediction, table, instance_files)
            return None

        try:
            results = predict_split.in_threads(write_and_count, found)
            counts = list(_with_progress(results, len(split), group, stall))
        except tf.errors.OpError as error:
            if device_memory.is_out_of_memory(error):
                raise entry.UserError(
                    entry.BAD_CONFIG,
                    f'a device is out of memory with {batch} images at a time ({error.message.splitlines()[0][:200]}). '
                    'Pass --batch=1, or predict by a sliding window: --window=512x1024.',
                ) from error
            group.raise_if_peer_lost(error)
            raise
        ours = accumulator.to_json(accumulator.merge(counts, table)) if scored else None
        shares = group.all_gather(ours)
        if group.rank == 0:
            if files:
                archive = submission.check_and_zip(_SUBMISSION_DIR.value, split, table)
                print(f'{len(split)} images of {split.name} by {path}, read back and found well: {archive}')
            if scored:
                total = accumulator.merge(map(accumulator.from_json, shares), table)
                result = _score(total, split, path, config.labels, table)
                refused = _write(result, inference)
                if not refused and not _OUTPUT_DIR.value:
                    page.write_after(
                        _WORKDIR.value, _DATA_DIR.value, split.name, config.eval.pictures, lambda: bool(stop)
                    )
                _print(result, refused)
                if refused and (_OUTPUT_DIR.value or refused.errno not in _MAY_ONLY_BE_READ):
                    raise refused
        group.all_gather(None)  # nobody leaves before the files are written


def _with_progress(
    results: 'Iterable[Result]', total: int, group: 'process_group.ProcessGroup', stall: 'shutdown.Stall'
) -> 'Iterator[Result]':
    """Passes on each result as it comes, and shows how many of the `total` images all processes have done: as many as
    this one in each, since they go on side by side."""
    shown = contextlib.nullcontext(lambda count: None) if group.rank else progress.show(total, 'image')
    with shown as on_progress:
        for done, result in enumerate(results):
            yield result
            stall.progress()
            on_progress(max(0, min(group.size, total - done * group.size)))


@dataclasses.dataclass(frozen=True)
class _Scored:
    """The scores of a split.

    Attributes:
      split: its name.
      checkpoint: the path of what predicted it.
      learnt: 'train_ids' or 'label_ids', what that predicts.
      table: the label table.
      counts: of all images.
      confusion: int64 [n, n], rows true ids, columns predicted ids.
      scores: fractions by name, of `accumulator.scores`, and for a model of all label ids the IoU of each.
    """

    split: str
    checkpoint: str
    learnt: str
    table: 'labels.Table'
    counts: 'accumulator.Counts'
    confusion: 'np.ndarray'
    scores: dict[str, float]


def _score(
    counts: 'accumulator.Counts', split: 'records.Split', checkpoint: str, learnt: str, table: 'labels.Table'
) -> _Scored:
    """Computes the scores from the counts of all images."""
    from unet.evaluation import accumulator, metrics, predict_split

    confusion = predict_split.as_matrix(counts.pairs, split, table)
    scores = accumulator.scores(counts, confusion, table)
    if learnt == 'label_ids':
        own = metrics.iou_of_all_ids(confusion, table)
        scores |= {f'eval/iou_all_ids/{name}': value for name, value in own.items()}
    return _Scored(split.name, checkpoint, learnt, table, counts, confusion, scores)


def _write(scored: _Scored, inference: options.InferenceOptions) -> OSError | None:
    """Writes evaluate-<split>.json and confusion-<split>.png, or returns why that cannot be done."""
    from data_prep import labels
    from launch import files
    from unet.reporting import confusion_plot, draw
    from unet.training import checkpoint, train_log

    result = {
        'checkpoint': scored.checkpoint,
        'checkpoint_sha256': checkpoint.digest(scored.checkpoint),
        'data_dir': _DATA_DIR.value,
        'split': scored.split,
        'images': len(scored.counts.images),
        'inference': dataclasses.asdict(inference),
        'scores': _without_nan(scored.scores),
        'scores_of_images': {image_id: _without_nan(own) for image_id, own in scored.counts.images.items()},
        'confusion': scored.confusion.tolist(),
    }
    shown = scored.table if scored.learnt == 'label_ids' else labels.classes(scored.table)
    title = f'{scored.checkpoint}\n{train_log.headline(scored.scores)}'
    try:
        files.write_atomically(_file('evaluate', scored.split, 'json'), json.dumps(result) + '\n')
        draw.save(confusion_plot.draw(scored.confusion, shown, title), _file('confusion', scored.split, 'png'))
    except OSError as error:
        return error
    return None


def _print(scored: _Scored, refused: OSError | None) -> None:
    """Prints the tables of scores, with mIoU in the last line."""
    from unet.evaluation import score_tables
    from unet.training import train_log

    scores, table = scored.scores, scored.table
    if scored.learnt == 'label_ids':
        print(f'Over its own classes, void ones too:\n{score_tables.of_all_ids(scored.confusion, table)}')
        print(f'mIoU of all label ids {100 * scores["eval/miou_all_ids"]:.2f} %\n\nBy the official rules:')
    print(score_tables.of_classes(scores, scored.confusion, table))
    print(score_tables.of_categories(scores, table))
    print(f'{scored.checkpoint} on {len(scored.counts.images)} images of {scored.split}')
    figures, picture = _file('evaluate', scored.split, 'json'), _file('confusion', scored.split, 'png')
    if refused:
        print(f'Not written: {refused.filename}: {refused.strerror}. Pass --output_dir to have all figures.')
    else:
        print(f'All figures: {figures}   Confusion: {picture}')
    print(score_tables.of_means(scores))
    print(train_log.headline(scores))


def _file(name: str, split: str, suffix: str) -> str:
    return os.path.join(_OUTPUT_DIR.value or _WORKDIR.value, f'{name}-{split}.{suffix}')


def _without_nan(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


if __name__ == '__main__':
    entry.run(main)

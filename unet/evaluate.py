"""Scores a run's checkpoint on a split, every image at its original size, by the official Cityscapes rules.

    python -m unet.evaluate --workdir=runs/cityscapes --data_dir=data/cityscapes --checkpoint=best
    python -m unet.evaluate --workdir=runs/cityscapes --window=512x1024 --scales=0.75,1,1.25 --flip
    python -m unet.evaluate --workdir=runs/cityscapes --submission_dir=submission

Prints a table per class and writes evaluate-<split>.json (every score, the confusion matrix, each image's score) and
confusion-<split>.png to the workdir. --cityscapes_dir, which holds the instance files, adds the
instance-weighted iIoU. --submission_dir writes and checks the files for the benchmark server, of the split test
unless --split is given, and packs them into <submission_dir>.zip. Of several processes (launch.local
--module=unet.evaluate, or a cluster) each predicts its share of the images.
"""

import contextlib
import json
import math
import os

from absl import flags

from launch import entry, progress
from unet import looking

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
    'Height x width in pixels, e.g. 512x1024: look at the image through overlapping windows of this size, blended at '
    'the seams. An unpadded network always does; this is then the size of its input.',
)
_OVERLAP = flags.DEFINE_float(
    'overlap', 0.25, 'Least share of a window that the next one covers again.', lower_bound=0, upper_bound=0.75
)
_SCALES = flags.DEFINE_list('scales', ['1'], 'Look at the image in each of these sizes, 1 being its own: mean counts.')
_FLIP = flags.DEFINE_bool('flip', False, 'Look at the image mirrored left to right too; the mean counts.')
_SUBMISSION_DIR = flags.DEFINE_string('submission_dir', None, 'Folder for the files for the benchmark server.')


def main() -> None:
    entry.outlive_readers()
    if not _WORKDIR.value:
        raise entry.Failure(entry.BAD_USAGE, 'pass --workdir, the folder of a run of unet.main')
    scales = looking.parse_scales(_SCALES.value)

    with entry.quiet_import():
        from data_prep import records
        from unet import instances, scoring, stopping, submission, workdir

    config = workdir.read_config(_WORKDIR.value)
    looks = {'scales': scales, 'flip': _FLIP.value}
    if _WINDOW.value:
        window = looking.parse_window(_WINDOW.value, config.model.depth, config.model.padding)
        looks |= {'tile': window} if config.model.padding == 'valid' else {'window': window, 'overlap': _OVERLAP.value}
    split = records.read_split(_DATA_DIR.value, _SPLIT.value or ('test' if _SUBMISSION_DIR.value else 'validation'))
    scored = not _SUBMISSION_DIR.value or bool(split.labelled.all())
    if scored:
        scoring.check_labelled(split)
    if _SUBMISSION_DIR.value:
        submission.prepare(_SUBMISSION_DIR.value, split, records.read_manifest(_DATA_DIR.value))
    instance_files = None
    if _CITYSCAPES_DIR.value and scored:
        instance_files = instances.find(_CITYSCAPES_DIR.value, split.image_ids)
    with stopping.StopRequest(config.runtime.grace_seconds) as stop:
        try:
            _evaluate(config, split, looks, scored, instance_files, stop)
        except scoring.Interrupted:
            raise entry.Failure(
                entry.STOPPED, 'stopped on request; nothing was scored, the same command starts over'
            ) from None


def _evaluate(config, split, looks: dict, scored: bool, instance_files: dict | None, stop) -> None:
    """Predicts the split, on all processes, and writes what was asked for."""
    import tensorflow as tf

    from unet import cluster, from_config, instances, peers, reporting, scoring, submission, tally

    workers, runtime = cluster.workers(os.environ), config.runtime
    with contextlib.ExitStack() as until_the_end:
        group = until_the_end.enter_context(
            peers.meet(workers.addresses, workers.rank, peer_seconds=runtime.peer_seconds, check=stop.check)
        )
        until_the_end.enter_context(peers.one_voice(group))
        group.agree(f'the split {split.name}', split.digest(), 'give all ranks the same records')
        strategy = cluster.make_strategy(runtime.virtual_devices, workers, peer_seconds=runtime.peer_seconds)
        group.agree('the number of devices', strategy.num_replicas_in_sync, 'give all hosts equally many GPUs')
        stop.listen()
        with strategy.scope():
            config, table, network, path = from_config.trained(_WORKDIR.value, _CHECKPOINT.value)
        group.agree('the checkpoint', path, 'the workdir must be on a filesystem that all hosts share')
        if instance_files:
            instances.check_classes(table)
        batch = _BATCH.value or config.eval.batch
        compiled = from_config.jit_predictions(config, strategy.num_replicas_in_sync)
        found = scoring.predictions(
            strategy,
            from_config.predictor(config, network, table, **looks, jit_windows=compiled),
            split,
            batch=batch,
            jit_compile=compiled and 'window' not in looks,
            stop=lambda: bool(stop),
        )
        files = submission.paths(_SUBMISSION_DIR.value, split) if _SUBMISSION_DIR.value else None

        def deal_with(example: int, truth, prediction) -> dict | None:
            if files:
                submission.write(files[example], prediction)
            if scored:
                return tally.of_image(split.image_ids[example], truth, prediction, table, instance_files)

        try:
            counts = list(
                _with_progress(scoring.in_threads(deal_with, found), len(split), group, runtime.stall_seconds)
            )
        except tf.errors.ResourceExhaustedError as error:
            raise entry.Failure(
                entry.BAD_CONFIG,
                f'a device is out of memory with {batch} images at a time ({error.message.splitlines()[0][:200]}). '
                'Pass --batch=1, or look through windows: --window=512x1024.',
            ) from error
        except tf.errors.OpError as error:
            group.explain(error)
            raise
        shares = group.gather(tally.add(counts, table) if scored else None)
        if group.rank == 0:
            if files:
                archive = submission.check_and_zip(_SUBMISSION_DIR.value, split, table)
                print(f'{len(split)} images of {split.name} by {path}, read back and found well: {archive}')
            if scored:
                total = tally.whole(tally.add(shares, table), split, table)
                scores = _write(total, config.labels, table, split.name, path, looks)
                reporting.write_after(
                    _WORKDIR.value, _DATA_DIR.value, split.name, config.eval.pictures, lambda: bool(stop)
                )
                _print(scores, total, config.labels, table, split.name, path)
        group.gather(None)  # nobody leaves before the files are written


def _with_progress(results, total: int, group, stall_seconds: float):
    """Passes on what comes, shows how far all processes are, and ends the process if nothing comes for too long."""
    from unet import stopping

    shown = contextlib.nullcontext(lambda count: None) if group.rank else progress.show(total, 'image')
    with stopping.Stall(stall_seconds) as stall, shown as advance:
        for done, result in enumerate(results):
            yield result
            stall.progress()
            advance(max(0, min(group.size, total - done * group.size)))


def _write(total, learnt: str, table, split: str, path: str, looks: dict) -> dict[str, float]:
    """Writes the files of the workdir and returns the scores."""
    from data_prep import labels, records
    from unet import console, heatmap, metrics, visualize

    scores = total.scores(table)
    if learnt == 'label_ids':
        own = metrics.iou_of_all_ids(total.confusion, table)
        scores |= {f'eval/iou_all_ids/{name}': value for name, value in own.items()}
    result = {
        'checkpoint': path,
        'data_dir': _DATA_DIR.value,
        'split': split,
        'images': len(total.images),
        'looks': looks,
        'scores': _without_nan(scores),
        'scores_of_images': {image_id: _without_nan(own) for image_id, own in total.images.items()},
        'confusion': total.confusion.tolist(),
    }
    records.write_atomically(_file('evaluate', split, 'json'), json.dumps(result) + '\n')
    shown = table if learnt == 'label_ids' else labels.classes(table)
    title = f'{path}\n{console.headline(scores)}'
    visualize.save(heatmap.draw(total.confusion, shown, title), _file('confusion', split, 'png'))
    return scores


def _print(scores: dict[str, float], total, learnt: str, table, split: str, path: str) -> None:
    from unet import console, tables

    if learnt == 'label_ids':
        print(f'Over its own classes, void ones too:\n{tables.of_all_ids(total.confusion, table)}')
        print(f'mIoU of all label ids {100 * scores["eval/miou_all_ids"]:.2f} %\n\nBy the official rules:')
    print(tables.of_classes(scores, total.confusion, table))
    print(tables.of_categories(scores, table))
    print(f'{path} on {len(total.images)} images of {split}')
    print(f'All figures: {_file("evaluate", split, "json")}   Confusion: {_file("confusion", split, "png")}')
    print(tables.of_means(scores))
    print(console.headline(scores))


def _file(name: str, split: str, suffix: str) -> str:
    return os.path.join(_WORKDIR.value, f'{name}-{split}.{suffix}')


def _without_nan(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


if __name__ == '__main__':
    entry.run(main)

"""Segments images and videos: label ids, colours, overlays and panels with a legend.

    python -m unet.predict --workdir=runs/cityscapes --images='photos/*.jpg' --output_dir=predictions
    python -m unet.predict --model=runs/cityscapes/export --images=drive.mp4 --outputs=overlays,confidence

For each image NAME, output_dir gets label_ids/NAME.png (label ids, the original size), colors/NAME.png,
overlays/NAME.png, panels/NAME.png (image, colours and overlay side by side with a legend) and, if asked for,
confidence/NAME.png (the probability of the class that was chosen, 0 to 255). The frames of a video drive.mp4 become
drive/000000.png and so on. Files that cannot be read are named and passed over; then the exit status is 65.
"""

import collections
import concurrent.futures
import pathlib

from absl import flags

from launch import entry, host, progress

_OUTPUTS = ('label_ids', 'colors', 'overlays', 'panels', 'confidence')
_WAITING = 32  # images whose pictures may be waiting to be written

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; this or --model is required.')
_MODEL = flags.DEFINE_string('model', None, 'Folder that unet.export wrote, instead of --workdir.')
_IMAGES = flags.DEFINE_multi_string(
    'images', [], 'An image, a video, a folder (with its subfolders) or a quoted glob; required, may be repeated.'
)
_OUTPUT_DIR = flags.DEFINE_string('output_dir', 'predictions', 'Folder for the results.')
_WANTED = flags.DEFINE_list('outputs', ','.join(_OUTPUTS[:-1]), f'What to write, of {", ".join(_OUTPUTS)}.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', "'best', 'latest', or the path of a checkpoint (without .index)."
)
_BATCH = flags.DEFINE_integer(
    'batch', 1, 'Images predicted together; only neighbours of one size share a batch.', lower_bound=1
)


def main() -> None:
    if not _IMAGES.value:
        raise entry.UserError(entry.BAD_USAGE, 'pass --images, an image, a video, a folder or a quoted glob')
    if bool(_WORKDIR.value) == bool(_MODEL.value):
        raise entry.UserError(
            entry.BAD_USAGE, 'pass --workdir, the folder of a run, or --model, what unet.export wrote'
        )
    unknown = set(_WANTED.value) - set(_OUTPUTS)
    if unknown or not _WANTED.value:
        raise entry.UserError(
            entry.BAD_USAGE, f'--outputs={",".join(_WANTED.value)}: choose from {", ".join(_OUTPUTS)}'
        )
    output = pathlib.Path(_OUTPUT_DIR.value)
    if output.exists() and not output.is_dir():
        raise entry.UserError(entry.BAD_USAGE, f'--output_dir={output}: is a file; pass a folder')

    with host.quiet_import():
        from unet.data import media

    sources = media.find(_IMAGES.value, leave_out=[output / kind for kind in _OUTPUTS])

    with host.quiet_import():
        import tensorflow as tf

        from unet.distributed import cluster
        from unet.exporting import saved_model
        from unet.inference import build as inference_build
        from unet.models import build as model_build
        from unet.reporting import draw
        from unet.training import restore

    strategy = cluster.make_strategy(0)  # which also refuses to run on the CPU of a machine with GPUs unnoticed
    with strategy.scope():
        if _MODEL.value:
            outputs_of, table, path = saved_model.load(_MODEL.value)
        else:
            config, table, network, path = restore.trained(_WORKDIR.value, _CHECKPOINT.value)
            outputs_of = saved_model.outputs_of_logits(
                inference_build.logits(config, network), model_build.id_of_class(config.labels, table)
            )

    @tf.function(reduce_retracing=True)
    def segment(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = outputs_of(images)
        confidence = tf.reduce_max(outputs['probabilities'], -1) if 'confidence' in _WANTED.value else 0.0
        return outputs['label_ids'], tf.cast(tf.round(255.0 * confidence), tf.uint8)

    def write(name, image, label_ids, confidence):
        pictures = {'label_ids': label_ids, 'colors': draw.colorize(label_ids, table), 'confidence': confidence}
        pictures['overlays'] = draw.overlay(image, label_ids, table)
        if 'panels' in _WANTED.value:
            panel = draw.side_by_side(image, pictures['colors'], pictures['overlays'])
            pictures['panels'] = draw.with_legend(panel, label_ids, table)
        for kind in _WANTED.value:
            draw.save(pictures[kind], output / kind / f'{name}.png')

    problems, done, writing = [], 0, collections.deque()
    with (
        progress.show(media.count(sources), 'image') as advance,
        concurrent.futures.ThreadPoolExecutor(host.cores()) as pool,
    ):
        for names, images in media.batched(media.read(sources, problems), _BATCH.value):
            try:
                label_ids, confidence = segment(tf.constant(images))
                label_ids, confidence = label_ids.numpy(), confidence.numpy()
            except tf.errors.ResourceExhaustedError:
                size = 'x'.join(map(str, images.shape[1:3]))
                problems += [f'{name}: {len(names)} x {size} pixels are too much for the memory' for name in names]
                continue
            for number, name in enumerate(names):
                own = confidence[number] if confidence.ndim else confidence
                writing.append(pool.submit(write, name, images[number], label_ids[number], own))
            while len(writing) > _WAITING:
                writing.popleft().result()
            done += len(names)
            advance(len(names))
        for written in writing:
            written.result()
    kinds = ', '.join(sorted(set(_WANTED.value), key=_OUTPUTS.index))
    print(f'{done} images by {path}: {kinds} in {output}', flush=True)
    if problems:
        raise entry.UserError(
            entry.BAD_DATA, f'{len(problems)} could not be read and were passed over:\n  ' + '\n  '.join(problems)
        )


if __name__ == '__main__':
    entry.run(main)

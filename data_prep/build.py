"""A whole build: scans the source, plans the shards, has them written, checks what they found, finishes the folder."""

import collections
import hashlib
import shlex
import time
from collections.abc import Callable

from etils import epath
from PIL import __version__ as pillow_version

from data_prep import build_state, cityscapes_layout, images, labels, masks, metadata, pair_list, shards
from launch import folders as launch_folders


def build(
    settings: shards.Settings,
    write_shards: Callable[[list[shards.Shard]], None],
    layout: cityscapes_layout.Layout | pair_list.CsvFile | pair_list.Patterns | None = None,
    folders: tuple[str, ...] = tuple(cityscapes_layout.SPLITS),
    seed: int = 2019,
) -> None:
    """Builds the folder `settings.data_dir`, or finishes it.

    Args:
      settings: where from, where to, and how.
      write_shards: writes a list of shards, see executors.py.
      layout: the source's, which lies at `settings.source`; by default Cityscapes's, with fine annotations.
      folders: the splits to read, keys of cityscapes_layout.SPLITS.
      seed: of the order of the examples.

    Raises:
      UserError: MISSING_INPUT or BAD_DATA if the source is not as it should be, IN_USE if the folder holds anything
        else.
    """
    layout = layout or cityscapes_layout.Layout(settings.source)
    masks.check_table(settings.table, settings.masks_are)
    found = layout.scan(folders, settings.masks_are)
    if len(classes := labels.classes(settings.table)) == 1:
        print(f'Note: {classes[0].name} is the only class that is scored: {labels.ONE_CLASS}')
    for warning in found.warnings:
        print(f'Note: {warning}')
    with launch_folders.named_at_the_end(found.passed_over):
        _build_of(layout, found, settings, write_shards, seed)


def _build_of(
    layout: cityscapes_layout.Layout | pair_list.CsvFile | pair_list.Patterns,
    found: cityscapes_layout.Scan,
    settings: shards.Settings,
    write_shards: Callable[[list[shards.Shard]], None],
    seed: int,
) -> None:
    """Builds the folder of what a scan found."""
    started, data_dir = time.monotonic(), epath.Path(settings.data_dir)
    if not settings.skip_bad:
        cityscapes_layout.raise_problems(settings.source, found.problems)
    plan = shards.plan(found.pairs, seed)
    used_flags = describe_flags(settings, layout.annotations, seed)
    source = {'images': len(found.pairs), 'sha256': cityscapes_layout.digest(found.pairs)}
    build_state.clear(data_dir)
    if build_state.is_complete(data_dir, used_flags, source):
        print(f'{data_dir} is complete; nothing to do.')
        return
    with build_state.locked(data_dir):
        todo = build_state.resume(data_dir, plan, used_flags, settings.skip_bad)
        total = sum(map(len, plan.values()))
        if len(todo) < total:
            print(f'Going on: {total - len(todo)} of {total} shards are there.', flush=True)
        if todo:
            write_shards(todo)
        splits = {name: [build_state.read_note(data_dir, shard) for shard in part] for name, part in plan.items()}
        skipped = found.problems + _check_notes(splits, settings)
        manifest = metadata.write(data_dir, settings.table, splits, used_flags, source, skipped)
        build_state.close(data_dir)
    converted = sum(len(shard.pairs) for shard in todo)
    _print_summary(manifest, converted, time.monotonic() - started)
    where = f'--data_dir={settings.data_dir}'
    print(f'Check: {shlex.join(["python", "-m", "data_prep.verify_tfrecords", where, *layout.flags])}')
    if 'validation' not in splits:
        print('Note: no validation split: a run scores the images that it trains on, which says nothing of others.')
    train = ['python', '-m', 'unet.main', *_choose_config(layout.annotations, splits), where]
    print(f'Next:  {shlex.join(train)}', flush=True)


def describe_flags(settings: shards.Settings, annotations: str | None, seed: int) -> dict:
    """Returns what shapes the records besides the source, as it is stored in the manifest."""
    encoding = settings.encoding
    encodes = encoding != images.Encoding(jpeg_quality=encoding.jpeg_quality)
    return {
        'annotations': annotations,
        'masks_are': settings.masks_are,
        'image_format': encoding.image_format,
        'jpeg_quality': encoding.jpeg_quality if encodes and encoding.image_format != 'png' else None,
        'size': list(encoding.size) if encoding.size else None,
        'encoder': f'pillow {pillow_version}' if encodes else None,
        'labels_sha256': hashlib.sha256(labels.to_json(settings.table).encode()).hexdigest(),
        'seed': seed,
    }


def _check_notes(splits: dict[str, list[dict]], settings: shards.Settings) -> list[str]:
    """Prints what is worth knowing of the shards' notes; returns the problems, which are those of the pairs left out.

    Raises:
      UserError: BAD_DATA if there are problems and they are not to be skipped, or no labels in a whole split.
    """
    notes = [note for part in splits.values() for note in part]
    problems = [problem for note in notes for problem in note['problems']]
    for kind in sorted({kind for note in notes for kind, _ in note['converted']}):
        files = [file for note in notes for found, file in note['converted'] if found == kind]
        print(f'Note: {len(files):,} {kind} image(s) converted to RGB, the first: {files[0]}')
    if turned := [file for note in notes for file in note.get('turned', [])]:
        print(f'Note: {len(turned):,} file(s) turned upright by their EXIF orientation, the first: {turned[0]}')
    for name, part in splits.items():
        void = [file for note in part for file in note['void']]
        count = sum(len(note['records']) for note in part)
        if void and len(void) == count:
            problems.append(
                f'{void[0]}: void everywhere, like all {count:,} labels of {name}. Are these placeholders '
                'of a test set? Copy the real labels, or leave the split out with --splits.'
            )
            if settings.skip_bad:
                cityscapes_layout.raise_problems(settings.source, problems)
        elif void:
            print(f'Note: {len(void):,} label file(s) of {name} are void everywhere, the first: {void[0]}')
        if not count:
            cityscapes_layout.raise_problems(settings.source, [f'{name}: none of its pairs can be used.', *problems])
    if not settings.skip_bad:
        cityscapes_layout.raise_problems(settings.source, problems)
    _check_masks([note for name, part in splits.items() if name != 'test' for note in part], settings)
    return problems


def _check_masks(notes: list[dict], settings: shards.Settings) -> None:
    """Says how many pixels are void by the value 255, which no entry of the label table mentions.

    Raises:
      UserError: BAD_DATA if one id is left besides: of masks that mark a class by 255, that class would be void.
    """
    pixels: collections.Counter[str] = collections.Counter()
    for note in notes:
        pixels.update(note['class_pixels'])
    void = pixels.pop(str(labels.IGNORED), 0)
    if not void:
        return
    share = f'{100 * void / (void + pixels.total()):.1f} % of the pixels'
    if len(pixels) == 1 and len(settings.table) > 1:
        masks = f'the labels hold {next(iter(pixels))} and 255 alone, and 255 is void: {share}.'
        remedy = (
            'Are these masks that mark a class by 255? Save them with the id that the label table gives that class, or '
            'pass --masks_are=colors and a table that gives it the color [255, 255, 255].'
        )
        cityscapes_layout.raise_problems(settings.source, [f'{masks} {remedy}'])
    print(f'Note: 255 is void, since the label table scores all its ids: {share}')


def _choose_config(annotations: str | None, splits: dict[str, list[dict]]) -> list[str]:
    """The flags to train with first: for a dataset in a layout of its own, crops that fit into its images."""
    scored = [] if 'validation' in splits else ['--config.data.eval_split=train']
    if annotations is not None:
        return ['--config=configs/cityscapes.py', *scored]
    sizes = [record[2:4] for notes in splits.values() for note in notes for record in note['records']]
    smallest = zip((512, 1024), *sizes, strict=True)
    crop = [max(min(sides) // 16 * 16, 16) for sides in smallest]
    return ['--config=configs/default.py', f'--config.data.crop=({crop[0]},{crop[1]})', *scored]


def _print_summary(manifest: dict, converted: int, seconds: float) -> None:
    if manifest['skipped']:
        print(
            f'Left out {len(manifest["skipped"])} pair(s) or file(s):\n{cityscapes_layout.shorten(manifest["skipped"])}'
        )
    print(f'{"split":<12}{"images":>9}{"labelled":>10}{"shards":>8}{"size":>12}')
    for name, split in manifest['splits'].items():
        size = sum(shard['bytes'] for shard in split['shards'])
        print(
            f'{name:<12}{split["examples"]:>9,}{split["labelled"]:>10,}{len(split["shards"]):>8}{size / 1e6:>9,.1f} MB'
        )
    if converted:
        print(f'{converted:,} images in {seconds:.1f} s ({converted / seconds:,.0f} images/s)')

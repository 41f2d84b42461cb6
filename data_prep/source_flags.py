"""The flags that say which images and masks records are made of, where these are not in the Cityscapes layout.

layout = source_flags.layout()  # None: --cityscapes_dir says it
"""

from absl import flags

from data_prep import masks, pair_list
from launch import entry

_PAIRS = flags.DEFINE_string(
    'pairs',
    None,
    'CSV file with the columns image, label and split (train, val, test, train_extra), paths relative to the file; the '
    'label is empty for images of the split test without one.',
)
_IMAGES = flags.DEFINE_string(
    'images', None, 'Pattern of the image files, e.g. in/{split}/{name}.jpg; {name} may span folders.'
)
_MASKS = flags.DEFINE_string('masks', None, 'Pattern of the mask files of --images, e.g. gt/{split}/{name}.png.')
MASKS_ARE = flags.DEFINE_enum(
    'masks_are',
    None,
    [masks.IDS, masks.COLORS],
    'What masks hold. ids: grey values or palette indices are label ids; colors: the colours of the label table. '
    'Default: grey values are label ids, and anything else is refused.',
)


def layout() -> pair_list.CsvFile | pair_list.Patterns | None:
    """Returns what --pairs, or --images and --masks, stand for; None if neither is given.

    Raises:
      UserError: BAD_USAGE if the flags contradict each other.
    """
    given = [flag.name for flag in (_PAIRS, _IMAGES, _MASKS) if flag.value is not None]
    given += ['cityscapes_dir'] * bool(flags.FLAGS['cityscapes_dir'].present)
    if sorted(given) not in ([], ['cityscapes_dir'], ['pairs'], ['images', 'masks']):
        raise entry.UserError(
            entry.BAD_USAGE,
            f'{", ".join(f"--{name}" for name in given)}: pass --cityscapes_dir, or --pairs, or --images with --masks.',
        )
    if _PAIRS.value is not None:
        return pair_list.CsvFile(_PAIRS.value)
    return pair_list.Patterns(_IMAGES.value, _MASKS.value) if _IMAGES.value is not None else None

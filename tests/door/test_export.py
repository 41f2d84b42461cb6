"""A trained run -> exports that need none of this project, and predictions that are the same from either."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from configs import default
from data_prep import labels
from launch import entry
from tests import tiny
from tests.data_prep.test_orientation import with_orientation

SIZES = [(40, 56), (33, 47), (40, 56), (40, 56)]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run that has learnt the scenes' colours, the records it learnt from, and a folder of images of mixed sizes."""
    folder = tmp_path_factory.mktemp('trained')
    data_dir = tiny.write_folder(
        folder / 'records', train=tiny.scenes(12), validation=tiny.scenes(4, seed=1) + tiny.scenes(2, (33, 47), seed=2)
    )
    fields = {'num_steps': 80, 'eval__every_steps': 80, 'checkpoint__every_steps': 80, 'optimizer__learning_rate': 1e-2}
    fields |= {'model__norm_momentum': 0.8, 'data__brightness': 0.0, 'data__contrast': 0.0, 'data__saturation': 0.0}
    done = tiny.run(tiny.train_command(folder / 'run', data_dir, **fields, data__scale='(1.0,1.0)'))
    assert done.returncode == 0, done.stderr
    (folder / 'images').mkdir()
    for number, size in enumerate(SIZES):
        (folder / f'images/{number}.png').write_bytes(tiny.png(tiny.scene(size, seed=100 + number)[0]))
    return folder


@pytest.fixture(scope='module')
def exported(trained):
    flags = [f'--workdir={trained}/run', f'--data_dir={trained}/records', '--size=40x56', '--calibration_images=12']
    done = tiny.run([sys.executable, '-m', 'unet.export', *flags, '--formats=saved_model,float16,int8,onnx'])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def predicted(trained):
    """The folder of what unet.predict makes of the images with the run's checkpoint."""
    folder = trained / 'predicted'
    flags = [f'--workdir={trained}/run', f'--images={trained}/images', f'--output_dir={folder}']
    done = tiny.run([sys.executable, '-m', 'unet.predict', *flags, '--outputs=label_ids,confidence,overlays'])
    assert done.returncode == 0, done.stderr
    return folder


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_exports_agree_with_the_model(trained, exported):
    shares = {line.split()[0]: float(line.split()[3]) for line in exported.splitlines() if ' % of ' in line}
    assert shares.keys() == {'saved_model', 'float16', 'int8', 'onnx'}
    assert shares['saved_model'] == 100 and shares['onnx'] > 99.9 and shares['float16'] > 99 and shares['int8'] > 90
    files = {str(f.relative_to(trained / 'run/export')) for f in (trained / 'run/export').rglob('*') if f.is_file()}
    assert files == {
        'saved_model/80/saved_model.pb', 'saved_model/80/fingerprint.pb', 'saved_model/80/assets.extra/labels.json',
        'saved_model/80/variables/variables.index', 'saved_model/80/variables/variables.data-00000-of-00001',
        'model.float16.tflite', 'model.int8.tflite', 'model.onnx',
    }  # fmt: skip


def test_predictions_from_workdir_and_exported_model_are_the_same(trained, exported, predicted, tmp_path):
    """And whatever the batch; the files hold what they should."""
    flags = [f'--model={trained}/run/export', f'--images={trained}/images', f'--output_dir={tmp_path}', '--batch=2']
    done = tiny.run([sys.executable, '-m', 'unet.predict', *flags, '--outputs=label_ids,confidence'])
    assert done.returncode == 0, done.stderr
    for number, size in enumerate(SIZES):
        label_ids = read(predicted / f'label_ids/{number}.png')
        confidence = read(predicted / f'confidence/{number}.png')
        assert label_ids.shape == confidence.shape == size and label_ids.dtype == confidence.dtype == np.uint8
        truth = tiny.scene(size, seed=100 + number)[1]
        assert (label_ids == truth)[truth > 0].mean() > 0.5  # void is not learnt; chance is one in six
        assert confidence.min() >= 255 // 19 and confidence.max() > 128
        np.testing.assert_array_equal(label_ids, read(tmp_path / f'label_ids/{number}.png'))
        difference = confidence.astype(int) - read(tmp_path / f'confidence/{number}.png')
        assert np.abs(difference).max() <= 1
        assert read(predicted / f'overlays/{number}.png').shape == (*size, 3)
    assert {path.name for path in predicted.iterdir()} == {'label_ids', 'confidence', 'overlays'}


def test_saved_model_needs_tensorflow_alone(trained, exported, predicted, tmp_path):
    """In a process that imports nothing of this project, by each of the signatures."""
    (tmp_path / 'serve.py').write_text(f"""
import io, os, pathlib, sys
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load({str(trained / 'run/export/saved_model/80')!r})
serve = loaded.signatures['serving_default']
assert loaded.signatures['serving_default'].structured_input_signature[1]['images'].dtype == tf.uint8
files = [pathlib.Path({str(trained)!r}, 'images', f'{{n}}.png').read_bytes() for n in range({len(SIZES)})]
encoded = loaded.signatures['encoded'](image_bytes=tf.constant(files))['label_ids_bytes'].numpy()
for number, file in enumerate(files):
    image = tf.io.decode_png(file)[None]
    expected = tf.io.decode_png(pathlib.Path({str(predicted)!r}, 'label_ids', f'{{number}}.png').read_bytes())[..., 0]
    answer = serve(images=image)
    np.testing.assert_array_equal(answer['label_ids'][0], expected)
    np.testing.assert_array_equal(loaded.signatures['label_ids'](images=image)['label_ids'][0], expected)
    np.testing.assert_array_equal(tf.io.decode_png(encoded[number])[..., 0], expected)
    assert answer['probabilities'].shape == (*image.shape[:3], 19)
    np.testing.assert_allclose(tf.reduce_sum(answer['probabilities'], -1), 1, atol=1e-5)
assert not {{name.split('.')[0] for name in sys.modules}} & {{'unet', 'data_prep', 'configs', 'launch'}}
""")
    done = subprocess.run([sys.executable, '-I', 'serve.py'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_file_is_the_same_image_to_predict_and_to_the_export(trained, exported, tmp_path):
    """Turned by its EXIF, panels too; of 16 bits per channel, if they are used."""
    image = tiny.scene((40, 56), seed=100)[0]
    names = [f'{kind}_{number}' for kind in ('PNG', 'JPEG') for number in range(1, 9)]
    files = {name: with_orientation(image, name.partition('_')[0], int(name[-1])) for name in names}
    deep = image[..., ::-1].astype(np.uint16) * 257
    files['deep'], files['dark'] = (cv2.imencode('.png', deep >> bits)[1].tobytes() for bits in (0, 4))
    (tmp_path / 'in').mkdir()
    for name, content in files.items():
        (tmp_path / 'in' / f'{name}.{"jpg" if "JPEG" in name else "png"}').write_bytes(content)
    flags = [f'--workdir={trained}/run', f'--images={tmp_path}/in', f'--output_dir={tmp_path}/out']
    done = tiny.run([sys.executable, '-m', 'unet.predict', *flags, '--outputs=label_ids,panels'])
    assert done.returncode == entry.BAD_DATA and done.stderr.count('/in/') == 1 and 'dark.png' in done.stderr
    encoded = tf.saved_model.load(f'{trained}/run/export/saved_model/80').signatures['encoded']
    with pytest.raises(tf.errors.InvalidArgumentError, match='nearly black'):
        encoded(image_bytes=tf.constant([files.pop('dark')]))
    found = encoded(image_bytes=tf.constant(list(files.values())))['label_ids_bytes'].numpy()
    for name, label_ids in zip(files, found, strict=True):
        upright = 'JPEG_1' if 'JPEG' in name else 'PNG_1'
        for kind in ('label_ids', 'panels') if 'PNG' in name or 'deep' in name else ():
            pictures = [read(tmp_path / f'out/{kind}/{name_}.png') for name_ in (name, upright)]
            np.testing.assert_array_equal(*pictures, err_msg=f'{kind} of {name}')
        seen = read(tmp_path / f'out/label_ids/{name}.png')
        np.testing.assert_array_equal(tf.io.decode_png(label_ids)[..., 0], seen, err_msg=name)
        assert seen.shape == (40, 56) and (seen == read(tmp_path / f'out/label_ids/{upright}.png')).mean() > 0.95


def test_bad_files_are_named_the_rest_goes_on(trained, tmp_path):
    good = tiny.png(tiny.scene((40, 56), seed=0)[0])
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/a.png').write_bytes(good[:-40])
    (tmp_path / 'in/b.png').write_bytes(good)
    (tmp_path / 'in/c.jpg').write_text('no image')
    flags = [f'--workdir={trained}/run', f'--output_dir={tmp_path}/in/out']
    (tmp_path / 'in/out/colors').mkdir(parents=True)
    (tmp_path / 'in/out/colors/b.png').write_bytes(good)  # as of an earlier call: not an image to predict
    done = tiny.run([sys.executable, '-m', 'unet.predict', f'--images={tmp_path}/in', *flags])
    assert done.returncode == entry.BAD_DATA and 'Traceback' not in done.stderr
    assert 'a.png' in done.stderr and 'c.jpg' in done.stderr and 'b.png' not in done.stderr
    found = {str(path.relative_to(tmp_path / 'in/out')) for path in (tmp_path / 'in/out').rglob('*.png')}
    assert found == {f'{kind}/b.png' for kind in ('label_ids', 'colors', 'overlays', 'panels')}


def test_mistakes_get_one_line_and_a_status(trained, tmp_path):
    run, images = f'--workdir={trained}/run', f'--images={trained}/images'
    data = f'--data_dir={trained}/records'
    cases = [
        ('predict', [run], entry.BAD_USAGE, '--images'),
        ('predict', [images], entry.BAD_USAGE, '--model'),
        ('predict', [images, run, f'--model={trained}'], entry.BAD_USAGE, '--model'),
        ('predict', [images, run, '--outputs=colours'], entry.BAD_USAGE, 'colors'),
        ('predict', [run, f'--images={tmp_path}/*.gif'], entry.MISSING_INPUT, '*.gif'),
        ('export', [run, data, '--formats=saved_model,tensorrt'], entry.BAD_USAGE, 'tensorrt'),
        ('export', [run, data, '--size=big'], entry.BAD_USAGE, 'HEIGHTxWIDTH'),
        ('export', [run, data, '--split=test'], entry.MISSING_INPUT, 'validation'),
        ('export', [f'--workdir={tmp_path}', data], entry.MISSING_INPUT, 'config.json'),
    ]
    for program, flags, status, text in cases:
        done = tiny.run([sys.executable, '-m', f'unet.{program}', *flags])
        assert done.returncode == status, (flags, done.returncode, done.stderr)
        assert text in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr, (flags, done.stderr)


def test_a_folder_that_holds_no_model_or_a_damaged_one_is_named(tmp_path):
    from unet.exporting import saved_model

    with pytest.raises(entry.UserError, match='unet.export') as failure:
        saved_model.load(tmp_path)
    assert failure.value.status == entry.MISSING_INPUT
    (tmp_path / 'saved_model.pb').write_bytes(b'x' * 100)
    with pytest.raises(entry.UserError, match='Export it again') as failure:
        saved_model.load(tmp_path)
    assert failure.value.status == entry.BAD_DATA


@pytest.mark.parametrize(
    'fields',
    [
        {'model.padding': 'valid', 'data.crop': (60, 60)},
        {'eval.resize': (32, 48)},
        {'model.residual': True, 'model.up': 'resize', 'model.dropout': 0.1, 'loss.auxiliary': 0.4},
        {'model.norm': 'group', 'precision': 'bfloat16'},
        {'precision': 'float16', 'labels': 'label_ids'},
        {'model.stem': 2, 'model.context': 'dilated', 'model.max_width': 8, 'loss.auxiliary': 0.4},
    ],
    ids=str,
)
def test_every_kind_of_model_is_exported_as_it_is(fields, tmp_path):
    """Replaces a version that is there; constants are folded: no variable is left."""
    import tensorflow as tf

    from unet.exporting import saved_model, verify
    from unet.inference import build as inference_build
    from unet.models import build as model_build

    config = default.get_config()
    config.update_from_flattened_dict({'model.width': 4, 'model.depth': 3, 'data.crop': (32, 32)} | fields)
    model = model_build.build_model(config, labels.CITYSCAPES, replicas=1)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if 'variance' not in variable.path:
            variable.assign(variable.numpy() + rng.normal(0, 0.05, variable.shape))
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((33, 47), (64, 80))]
    model = saved_model.outputs_of_logits(
        inference_build.logits(config, model), model_build.id_of_class(config.labels, labels.CITYSCAPES)
    )
    (tmp_path / '7').mkdir()
    (tmp_path / '7/old').touch()
    verify.write_saved_model(model, labels.CITYSCAPES, tmp_path / '7', images)
    assert [path.name for path in tmp_path.iterdir()] == ['7'] and not (tmp_path / '7/old').exists()
    run, table, _ = saved_model.load(tmp_path)
    assert table == labels.CITYSCAPES
    for image in images:
        expected, got = tf.function(model)(tf.constant(image[None])), run(tf.constant(image[None]))
        np.testing.assert_array_equal(expected['label_ids'], got['label_ids'])
        assert len(np.unique(got['label_ids'])) > 1
    assert not tf.saved_model.load(str(tmp_path / '7')).signatures['serving_default'].variables


def test_a_stem_and_context_are_exported_to_files_too(tmp_path):
    """By each converter, with normalisation folded into the stem's strided convolutions."""
    from unet.exporting import converters, fold_batch_norm, saved_model, verify
    from unet.inference import build as inference_build
    from unet.models import build as model_build

    config = default.get_config()
    fields = {'model.width': 4, 'model.depth': 3, 'data.crop': (32, 32), 'model.stem': 4, 'model.context': 'dilated'}
    config.update_from_flattened_dict(fields)
    model = model_build.build_model(config, labels.CITYSCAPES, replicas=1)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(
            variable.numpy() * rng.uniform(0.5, 2, variable.shape) + (0.1 if 'variance' in variable.path else 0)
        )
    size, image = (32, 48), rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    own_config, own = model_build.build_in_precision(config, model, labels.CITYSCAPES, 'float32')
    fold_batch_norm.fold(own)
    expected, folded = (
        saved_model.outputs_of_logits(
            inference_build.logits(own_config, each), model_build.id_of_class(config.labels, labels.CITYSCAPES)
        )
        for each in (model, own)
    )
    contents = {
        'float16': converters.float16(folded, size),
        'int8': converters.int8(folded, size, lambda: iter([image] * 4)),
        'onnx': converters.onnx(folded),
    }
    for kind, content in contents.items():
        verify.write_file(kind, content, tmp_path / kind, expected, [image])
        assert (tmp_path / kind).exists()


def test_an_export_that_differs_from_its_model_is_not_kept(tmp_path):
    """The file of one model, compared with another that names the classes the other way round."""
    import tensorflow as tf

    from unet.exporting import converters, saved_model, verify

    def model_of(ids):
        return saved_model.outputs_of_logits(
            lambda images: tf.stack([images[..., 0], images[..., 1]], -1), np.array(ids, np.uint8)
        )

    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    content = converters.onnx(model_of([7, 8]))
    verify.write_file('onnx', content, tmp_path / 'kept', model_of([7, 8]), [image])
    with pytest.raises(entry.UserError, match='not written') as failure:
        verify.write_file('onnx', content, tmp_path / 'refused', model_of([8, 7]), [image])
    assert failure.value.status == entry.BAD_DATA
    assert [path.name for path in tmp_path.iterdir()] == ['kept'] and (tmp_path / 'kept').read_bytes() == content


@pytest.mark.parametrize(('residual', 'folded'), [(False, 12), (True, 7)])
def test_folding_changes_nothing_and_leaves_only_signs_and_shifts(residual, folded):
    from unet.exporting import fold_batch_norm
    from unet.models import batch_norm, unet

    model = unet.build_unet(unet.Architecture(5, width=4, depth=3, residual=residual))
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, batch_norm.BatchNorm)]
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(
            variable.numpy() * rng.uniform(0.2, 5, variable.shape) + rng.normal(0, 0.3, variable.shape) ** 2
        )
    for norm in norms:  # scales of both signs, far apart
        norm.gamma.assign(norm.gamma.numpy() * rng.choice([-1, 1], norm.gamma.shape))
    images = rng.uniform(-1, 1, (2, 24, 32, 3)).astype(np.float32)
    before = model(images).numpy()
    fold_batch_norm.fold(model)
    after = model(images).numpy()
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())
    scales = [norm.scale_and_shift()[0].numpy() for norm in norms]
    signs = [scale for scale in scales if np.allclose(np.abs(scale), 1, rtol=1e-6)]
    assert len(scales) == 12 and len(signs) == folded  # a residual block's sum has no convolution to fold into
    assert np.concatenate(signs).min() < 0


def test_int8_takes_images_as_they_are_even_if_calibrated_on_dark_ones():
    """The quantised input must stand for 0..255, not for the range that the calibration images happen to have."""
    import tensorflow as tf

    from unet.exporting import converters, saved_model

    model = saved_model.outputs_of_logits(
        lambda images: tf.stack(
            [tf.cast(images[..., 0], tf.float32) - 100, 100 - tf.cast(images[..., 0], tf.float32)], -1
        ),
        np.array([0, 1], np.uint8),
    )
    dark = np.random.default_rng(0).integers(0, 60, (10, 8, 8, 3), dtype=np.uint8)
    run = converters.run_tflite(converters.int8(model, (8, 8), lambda: iter(dark)))
    image = np.arange(0, 192, dtype=np.uint8).reshape(1, 8, 8, 3)
    np.testing.assert_array_equal(run(image)['label_ids'], model(tf.constant(image))['label_ids'])

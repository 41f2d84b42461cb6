from configs import cityscapes
from data_prep import png
from launch import entry
from unet.diagnostics import checks, selfcheck
from unet.training import build


def test_the_slow_reader_of_png_files_is_warned_of_with_its_remedy(monkeypatch, capsys):
    monkeypatch.setattr(png, '_png', None)
    check = checks._png_reader()
    assert not check.passed and check.status == entry.OK
    checks.refuse([check])
    printed = capsys.readouterr().out
    assert printed.startswith('warn  PNG reader: Pillow') and png.SLOW_READER_REMEDY in printed


def test_a_run_that_goes_on_needs_no_room_for_what_it_holds(tmp_path):
    kept = 2
    (tmp_path / 'checkpoints').mkdir()
    assert checks._space(str(tmp_path), kept, 2**20).found.startswith('5.0 MiB of')
    (tmp_path / 'checkpoints/ckpt-1.data-00000-of-00001').write_bytes(bytes(3 * 2**20 // 2))
    assert checks._space(str(tmp_path), kept, 2**20).found.startswith('3.5 MiB of')
    (tmp_path / 'checkpoints/ckpt-2.data-00000-of-00001').write_bytes(bytes(9 * 2**20))
    assert checks._space(str(tmp_path), kept, 2**20).found.startswith('2.0 MiB of')


def test_normalisation_over_the_device_is_neither_compared_nor_summed():
    config = cityscapes.get_config()
    sums = build.estimate_cost(config, 19).norm_sums
    config.model.norm_over = 'device'
    assert sums > 20 and build.estimate_cost(config, 19).norm_sums == 0
    assert selfcheck.small(config, 2).model.norm_over == 'global_batch'

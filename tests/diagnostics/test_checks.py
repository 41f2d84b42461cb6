from data_prep import png
from launch import entry
from unet.diagnostics import checks


def test_the_slow_reader_of_png_files_is_warned_of_with_its_remedy(monkeypatch, capsys):
    monkeypatch.setattr(png, '_png', None)
    check = checks._png_reader()
    assert not check.passed and check.status == entry.OK
    checks.refuse([check])
    printed = capsys.readouterr().out
    assert printed.startswith('warn  PNG reader: Pillow') and png.SLOW_READER_REMEDY in printed

"""Folders as people have them: links, loops of links, leftovers, what cannot be read."""

import os
import pathlib

import pytest

from launch import folders


def make(root: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def below(folder: pathlib.Path) -> tuple[list[str], list[str]]:
    problems = []
    return list(folders.files_below(folder, problems)), problems


def test_links_are_followed_and_loops_are_not(tmp_path):
    make(tmp_path, 'elsewhere/ulm/1.png', 'elsewhere/2.png', 'photos/a/3.png', 'beside.png')
    photos = tmp_path / 'photos'
    (photos / 'city').symlink_to('../elsewhere/ulm')
    (photos / 'b.png').symlink_to(tmp_path / 'elsewhere/2.png')
    for loop, target in (('a/self', '.'), ('a/back', '..'), ('up', tmp_path), ('root', '/'), ('self', '.')):
        (photos / loop).symlink_to(target)
    (tmp_path / 'elsewhere/ulm/across').symlink_to(photos)  # into a folder that one is in
    wanted = ['b.png', 'a/3.png', 'city/1.png']
    assert below(photos) == (wanted, [])
    (tmp_path / 'linked').symlink_to('photos')
    assert below(tmp_path / 'linked') == (wanted, [])


def test_what_leads_nowhere_or_cannot_be_read_is_named_and_costs_nothing_else(tmp_path):
    make(tmp_path, 'a.png', 'b/c.png')
    (tmp_path / 'gone').symlink_to('/nowhere/ulm')
    (tmp_path / 'b/gone.png').symlink_to('none.png')
    (tmp_path / 'b/round.png').symlink_to('round.png')
    os.mkfifo(tmp_path / 'b/pipe.png')
    names, problems = below(tmp_path)
    assert names == ['a.png', 'b/c.png'] and len(problems) == 3
    assert f'{tmp_path}/gone: is a link to /nowhere/ulm' in problems[0] and 'No such file' in problems[0]
    assert 'b/gone.png: ' in ''.join(problems) and 'b/round.png: is a link to round.png' in ''.join(problems)
    assert below(tmp_path / 'none')[1] and below(tmp_path / 'a.png')[1]


@pytest.mark.parametrize(
    'left', ['.ipynb_checkpoints', '@eaDir', '__MACOSX', '.thumbnails', '.@__thumb', '$RECYCLE.BIN', '.Trash-1000']
)
def test_leftovers_are_passed_over_unless_they_are_what_was_asked_for(tmp_path, left):
    make(
        tmp_path, 'ulm/1.png', f'{left}/1.png', f'ulm/{left}/sub/1.png', 'ulm/.DS_Store', 'ulm/Thumbs.db', 'ulm/._1.png'
    )
    assert below(tmp_path) == (['ulm/1.png'], [])
    assert below(tmp_path / left) == (['1.png'], [])


def test_names_of_images():
    assert all(map(folders.looks_like_image, ('a.HEIC', 'b.avif', 'c.gif', 'd.jfif', 'e.f.JPG')))
    assert not any(map(folders.looks_like_image, ('notes.txt', 'png', '.png', 'a.png.zip', 'labels.json')))

"""What XLA has compiled, kept in a workdir, so that a run that goes on does not compile for minutes again.

    xla_cache.use('runs/cityscapes')  # before TensorFlow is imported
    xla_cache.seal('runs/cityscapes')  # once the run advances with what was compiled

XLA ends the process over an entry that is damaged, so only those are kept whose digest is sealed. Entries are of one
kind of machine: of its processor, its GPUs and TensorFlow's version. Their keys hold names of functions, which count
what TensorFlow has made before them: a function is found again if what precedes it is the same at each start.
"""

import contextlib
import glob
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re

from launch import files

_FOLDER = 'xla_cache'
_SEALED = 'sealed.json'  # SHA-256 by file
_FLAG = '--tf_xla_persistent_cache_directory'


def use(workdir: str) -> None:
    """Lets XLA look for what it needs in the workdir, and leave it there, unless the user has set a folder or the
    workdir cannot be written to. Folders are made when there is something to leave."""
    flags, folder = os.environ.get('TF_XLA_FLAGS', ''), _folder(workdir)
    if _FLAG in flags or len(str(folder).split()) > 1:  # TF_XLA_FLAGS knows no quotes
        return
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return
    with contextlib.suppress(OSError):
        sealed = _sealed(folder)
        for path in folder.glob('*.pb*'):
            if sealed.get(path.name) != _digest(path):
                path.unlink(missing_ok=True)
        os.environ['TF_XLA_FLAGS'] = f'{flags} {_FLAG}={folder}'.strip()


def seal(workdir: str) -> None:
    """Notes the digests of what is there; what cannot be noted is compiled again next time."""
    folder = _folder(workdir)
    if _FLAG not in os.environ.get('TF_XLA_FLAGS', '') or not folder.is_dir():
        return
    with contextlib.suppress(OSError):
        sealed = {path.name: _digest(path) for path in folder.glob('*.pb')}
        files.write_atomically(folder / _SEALED, json.dumps(sealed) + '\n')


def _sealed(folder: pathlib.Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((folder / _SEALED).read_text()))
    return {}


def _folder(workdir: str) -> pathlib.Path:
    return pathlib.Path(os.path.abspath(workdir), _FOLDER, _machine())


def _machine() -> str:
    """Tells apart machines for which XLA compiles differently."""
    processor = pathlib.Path('/proc/cpuinfo').read_text() if os.path.exists('/proc/cpuinfo') else ''
    parts = sorted(set(re.findall(r'^flags.*|^model name.*', processor, re.MULTILINE)))
    parts += [importlib.metadata.version('tensorflow')]
    for path in sorted(glob.glob('/proc/driver/nvidia/gpus/*/information') + glob.glob('/proc/driver/nvidia/version')):
        parts += re.findall(r'Model:.*|NVRM version:.*', pathlib.Path(path).read_text())
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:12]


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

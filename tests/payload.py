"""A program for launchers to start in place of training: notes what it was given, and ends as it is told.

    python -m tests.payload FOLDER STATUS [anything]

Writes FOLDER/<rank>-<attempt>.json. STATUS is an exit status; `progress:N` leaves a new file in FOLDER/checkpoints and
asks to be run again until there are N; `sleep` waits for SIGTERM and then exits with 75.
"""

import json
import os
import pathlib
import signal
import sys
import time

folder, wanted = pathlib.Path(sys.argv[1]), sys.argv[2]
rank = os.environ.get('SLURM_PROCID') or os.environ.get('JOB_COMPLETION_INDEX') or '0'
attempt = os.environ.get('SLURM_RESTART_COUNT', '0')
folder.mkdir(parents=True, exist_ok=True)
note = {'argv': sys.argv[1:], 'environ': dict(os.environ), 'cwd': os.getcwd()}
(folder / f'{rank}-{attempt}.json').write_text(json.dumps(note))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print(f'payload: rank {rank}, attempt {attempt}', flush=True)
print(f'payload: {sys.argv[1:]}', flush=True)
if wanted == 'sleep':
    time.sleep(600)
if wanted.startswith('progress:'):
    checkpoints = folder / 'checkpoints'
    checkpoints.mkdir(exist_ok=True)
    count = len(list(checkpoints.iterdir()))
    if count < int(wanted.partition(':')[2]):
        (checkpoints / f'ckpt-{count}').touch()
        sys.exit(76)
    wanted = '0'
sys.exit(int(wanted))

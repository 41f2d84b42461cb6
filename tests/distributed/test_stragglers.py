"""The rank that holds the others up is named, with the reason: its data, or its computing."""

import re
import sys

import pytest

from tests import tiny
from unet.distributed import stragglers
from unet.training import workdir


class Ranks:
    """A process group in which each rank says the same at every report."""

    def __init__(self, *rows: list[float]):
        self.size, self._rows = len(rows), list(rows)

    def all_gather(self, _: object) -> list[list[float]]:
        return self._rows

    def name(self, rank: int) -> str:
        return f'rank {rank}'


def _compared(*rows: list[float], reports: int = 5) -> list[tuple[dict[str, float], list[str]]]:
    found = stragglers.Stragglers(Ranks(*rows))
    return [found.compare(seconds=0, without_data=0, in_sums=0) for _ in range(reports)]


def test_a_rank_is_named_once_after_three_reports_with_its_reason():
    even, by_data, by_computing = [10.0, 0.5, 6.0], [10.0, 4.5, 2.0], [10.0, 0.5, 2.0]  # all, without data, in sums
    for late, data, computing in ((by_data, 2 / 3, 0.0), (by_computing, 0.0, 2 / 3)):
        reports = _compared(even, late, even)
        metrics = reports[0][0]
        assert metrics['time/slowest_rank'] == 1
        # The sums themselves take 2 s and the others' own work 4 s of what is 10 s for the sake of rank 1.
        assert metrics['time/slowest_over_median'] == pytest.approx(10 / 6)
        assert metrics['time/slowest_by_data'] == pytest.approx(data)
        assert metrics['time/slowest_by_computing'] == pytest.approx(computing)
        assert metrics['time/median_in_sums'] == pytest.approx(0.6)
        assert [len(sentences) for _, sentences in reports] == [0, 0, 1, 0, 0]
        reason = 'waiting for data +67 %, computing +0 %' if data else 'waiting for data +0 %, computing +67 %'
        assert reports[2][1] == [f'rank 1 holds the others up: 67 % slower than the median for 3 reports ({reason})']
    assert _compared(even, [10.0, 0.5, 5.5], even)[-1][1] == []  # 9 % slower
    assert _compared([10.0, 0.5, 6.0])[-1] == ({}, [])  # alone
    assert _compared([10.0, 0.5, 0.0], [10.0, 0.5, 0.0])[-1] == ({}, [])  # no clock in the step


@pytest.mark.parametrize('reason', ['data', 'computing'])
def test_a_slow_worker_is_named(tmp_path, reason):
    data_dir = tiny.write_folder(tmp_path / 'records', train=tiny.scenes(6), validation=tiny.scenes(2, seed=1))
    run = tmp_path / 'run'
    fields = {'num_steps': 60, 'log.every_steps': 10, 'checkpoint.every_steps': 60, 'eval.every_steps': 60}
    arguments = tiny.train_command(run, data_dir, runtime__deterministic=False, runtime__jit_compile='auto', **fields)
    done = tiny.run(
        [sys.executable, '-m', 'launch.local', '--workers=2', '--module=tests.slow_rank', '--', *arguments[3:]],
        SLOW_RANK='1',
        SLOW_BY=reason,
    )
    assert done.returncode == 0, done.stdout
    pattern = r'(rank \d) \(\S+\) holds the others up.*data ([+-]\d+) %, computing ([+-]\d+) %'
    (named, *shares), *_ = re.findall(pattern, done.stdout) or [('nobody', 0, 0)]
    data, computing = map(int, shares)
    assert named == 'rank 1' and (data > computing) == (reason == 'data'), done.stdout
    slowest = [line['time/slowest_rank'] for line in workdir.read_metrics(run) if 'time/slowest_rank' in line]
    assert slowest.count(1) >= 3
    report = (run / 'report.html').read_text()
    assert 'Slowest worker' in report and 'rank 1' in report

import math

import pytest

from launch import host


def test_which_gpus_a_process_should_see(tmp_path):
    """void is what container runtimes set that mount the GPUs themselves (CDI): the device files count."""
    for number in range(2):
        (tmp_path / f'nvidia{number}').touch()
    (tmp_path / 'nvidiactl').touch()
    for environ, expected in (
        ({}, ['0', '1']),
        ({'NVIDIA_VISIBLE_DEVICES': 'void'}, ['0', '1']),
        ({'NVIDIA_VISIBLE_DEVICES': 'all'}, ['0', '1']),
        ({'NVIDIA_VISIBLE_DEVICES': 'none'}, []),
        ({'NVIDIA_VISIBLE_DEVICES': 'GPU-a,GPU-b'}, ['GPU-a', 'GPU-b']),
        ({'NVIDIA_VISIBLE_DEVICES': 'void', 'UNET_GPUS': '8'}, list('01234567')),
        ({'UNET_GPUS': '4', 'CUDA_VISIBLE_DEVICES': '2,3'}, ['2', '3']),
        ({'UNET_GPUS': '4', 'CUDA_VISIBLE_DEVICES': '-1'}, []),
        ({'CUDA_VISIBLE_DEVICES': 'NoDevFiles'}, []),
        ({'CUDA_VISIBLE_DEVICES': ''}, []),
        ({'CUDA_VISIBLE_DEVICES': 'MIG-1234'}, ['MIG-1234']),
        ({'SLURM_GPUS_ON_NODE': '1'}, ['0']),
    ):
        assert host.visible_gpus(environ, f'{tmp_path}/nvidia[0-9]*') == expected, environ


@pytest.mark.parametrize(
    ('groups', 'files', 'expected'),
    [
        ('0::/', {}, math.inf),
        ('0::/', {'cpu.max': 'max 100000'}, math.inf),
        ('0::/pod/container', {'pod/cpu.max': '400000 100000', 'pod/container/cpu.max': 'max 100000'}, 4),
        ('0::/pod/container', {'pod/cpu.max': '400000 100000', 'pod/container/cpu.max': '150000 100000'}, 1.5),
        ('0::/outside/of/the/container', {'cpu.max': '200000 100000'}, 2),
        (
            '5:cpu,cpuacct:/pod\n3:memory:/pod',
            {'cpu,cpuacct/pod/cpu.cfs_quota_us': '250000', 'cpu,cpuacct/pod/cpu.cfs_period_us': '100000'},
            2.5,
        ),
        ('5:cpuacct,cpu:/pod', {'cpu/pod/cpu.cfs_quota_us': '-1', 'cpu/pod/cpu.cfs_period_us': '100000'}, math.inf),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path, groups, files, expected):
    """A pod with a limit of 4 on a host of 64 cores would else start 64 threads."""
    for name, content in files.items():
        path = tmp_path / 'cgroup' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + '\n')
    (tmp_path / 'self').write_text(groups + '\n')
    assert host.cpu_quota(str(tmp_path / 'self'), str(tmp_path / 'cgroup')) == expected


def test_there_is_always_a_core():
    assert host.cores() >= 1


@pytest.mark.parametrize(
    ('cpuinfo', 'expected'),
    [
        ('processor : 0\nflags : fpu avx2 avx512f avx512_bf16', True),  # x86
        ('processor : 0\nFeatures : fp asimd bf16 i8mm', True),  # Arm
        ('processor : 0\nflags : fpu avx2 avx512f avx512_vnni', False),
        ('', False),
    ],
)
def test_cpus_that_multiply_bfloat16_are_told_by_their_flags(tmp_path, cpuinfo, expected):
    (tmp_path / 'cpuinfo').write_text(cpuinfo)
    assert host.multiplies_bfloat16(str(tmp_path / 'cpuinfo')) is expected

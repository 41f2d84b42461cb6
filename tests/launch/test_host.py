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

"""Who computes: the devices of this process, as a tf.distribute strategy.

strategy = cluster.make_strategy(virtual_devices=0)
"""

import glob
import os

import tensorflow as tf

from launch import entry


def make_strategy(virtual_devices: int) -> tf.distribute.Strategy:
    """A MirroredStrategy over all GPUs, over `virtual_devices` parts of the CPU, or over the one CPU.

    Raises:
      Failure: BAD_CONFIG if this host has GPUs that TensorFlow cannot use: it never falls back to the CPU unnoticed.
    """
    if virtual_devices:
        cpu = tf.config.list_physical_devices('CPU')[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * virtual_devices)
        devices = [f'/cpu:{i}' for i in range(virtual_devices)]
    else:
        gpus = tf.config.list_physical_devices('GPU')
        check_gpus(promised=promised_gpus(), seen=len(gpus))
        devices = [f'/gpu:{i}' for i in range(len(gpus))] or ['/cpu:0']
    # NCCL knows no CPUs; and the default's collectives clash when a process makes a second strategy.
    reduction = None if devices[0].startswith('/gpu') else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def promised_gpus(environ: dict[str, str] | None = None, device_files: str = '/dev/nvidia[0-9]*') -> int:
    """How many NVIDIA GPUs this process should see: what the user, the launcher or else the driver says."""
    environ = os.environ if environ is None else environ
    visible = environ.get('CUDA_VISIBLE_DEVICES', environ.get('NVIDIA_VISIBLE_DEVICES'))
    if visible is not None and visible != 'all':
        return 0 if visible in ('', '-1', 'none', 'void') else len(visible.split(','))
    slurm = environ.get('SLURM_GPUS_ON_NODE', '')
    return int(slurm) if slurm.isdigit() else len(glob.glob(device_files))


def check_gpus(*, promised: int, seen: int) -> None:
    """Raises Failure BAD_CONFIG if fewer GPUs are seen than promised."""
    if seen < promised:
        raise entry.Failure(
            entry.BAD_CONFIG,
            f'this host has {promised} NVIDIA GPU(s) for this process, TensorFlow sees {seen}. Install its GPU '
            "libraries (pip install 'unet-cityscapes[cuda]'), check nvidia-smi, or train on the CPU on purpose with "
            'CUDA_VISIBLE_DEVICES=-1.',
        )

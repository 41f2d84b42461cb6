"""How many images per second each part of a config's training and evaluation achieves on these devices.

    def report(part, figures):
        print(part, figures.images_per_second)

    throughput.measure(config, 'data/cityscapes', parts=['step'], seconds=20, on_progress=report)

It is what unet.benchmark prints. `parts` builds what is measured, `timing` times it, and `device_speed` says how long a
step should take. Workers of a cluster measure at the same time.
"""

import ctypes
import dataclasses
import gc
import json
import pathlib
from collections.abc import Callable, Collection

import tensorflow as tf
from ml_collections import ConfigDict

from data_prep import labels, records
from launch import host
from unet.diagnostics import checks, device_speed, timing
from unet.diagnostics import parts as measured_parts
from unet.distributed import cluster, process_group
from unet.models import build as model_build
from unet.models import step_cost
from unet.training import build as training_build
from unet.training import device_memory


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What was measured on, and what a step is expected to take there.

    Attributes:
      device: 'GPU' or 'CPU'.
      devices, workers, cores: their numbers, over all workers.
      global_batch, crop, precision: of the config.
      jit_compile: whether XLA compiles the step.
      step_flops_per_image: floating-point operations of a training step per image.
      matrix_flops_per_second: what a large matrix product reaches on all devices.
      estimated_peak_bytes: of a device during a step.
      expected_milliseconds: of a step, by `device_speed`.
      config: the config in the types of JSON.
    """

    device: str
    devices: int
    workers: int
    cores: int
    global_batch: int
    crop: list[int]
    precision: str
    jit_compile: bool
    step_flops_per_image: float
    matrix_flops_per_second: float
    estimated_peak_bytes: int
    expected_milliseconds: float
    config: dict[str, object]


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a part achieves: rates are sums over the workers; times, shares and memory those of the slowest or fullest.

    Attributes:
      images_per_second: the median over parts of the time.
      milliseconds, milliseconds_p90: of a step, of 'predict' of an image, of 'evaluate' of a batch on all devices:
        median and 90th percentile of the calls, each of which counts as the mean of its steps.
      peak_bytes: of the fullest GPU, or of the process where there is none.
      waiting_for_data: share of the time; None for parts that take no steps and in deterministic mode.
    """

    images_per_second: float
    milliseconds: float
    milliseconds_p90: float
    peak_bytes: int
    waiting_for_data: float | None = None


def measure(
    config: ConfigDict,
    data_dir: str,
    *,
    parts: Collection[str],
    seconds: float,
    on_start: Callable[[Conditions], None] = lambda conditions: None,
    on_progress: Callable[[str, Figures], None] = lambda part, figures: None,
) -> tuple[Conditions, dict[str, Figures]] | None:
    """Measures the parts one after the other, on all workers of the cluster at the same time.

    Args:
      config: a valid one.
      data_dir: record folder; 'step' alone needs none.
      parts: of 'input_pipeline', 'step', 'end_to_end', 'predict' and 'evaluate'. Several workers that measure 'step'
        measure 'no_communication' too: the step of one device of each without a word to any other.
      seconds: for how long each part is measured, after a warm-up.
      on_start: called on rank 0 before the first part.
      on_progress: called on rank 0 with the name and the figures of each part as it is done.

    Returns:
      The conditions and the figures of each part, on rank 0; None elsewhere.

    Raises:
      UserError: as training would.
    """
    config = config.copy_and_resolve_references()
    runtime = config.runtime
    training_build.prepare_process(config)
    found = {}
    with cluster.join(
        virtual_devices=runtime.virtual_devices,
        peer_seconds=runtime.peer_seconds,
        stall_seconds=runtime.stall_seconds,
    ) as joined:
        table = records.read_label_table(data_dir)
        checks.refuse([checks.batch(config, joined.replicas)])
        if runtime.microbatches == 0:
            config = training_build.with_fitting_microbatches(config, table, joined.group, joined.replicas)
        conditions = _conditions(config, table, joined.strategy, joined.group)
        joined.stall.progress()
        if joined.is_chief:
            on_start(conditions)
        for part in measured_parts.build(config, data_dir, table, joined, parts):
            found[part.name] = _measure_part(part, joined, seconds, reads_clock=not runtime.deterministic)
            joined.stall.progress()
            if joined.is_chief:
                on_progress(part.name, found[part.name])
        return (conditions, found) if joined.is_chief else None


def _measure_part(part: measured_parts.Part, joined: cluster.Joined, seconds: float, *, reads_clock: bool) -> Figures:
    group = joined.group

    def call() -> float | None:
        joined.stall.progress()
        return part.call()

    _forget_peak_memory()
    measured = timing.measure(
        call, images=part.images, steps=part.steps, seconds=seconds, agree=lambda own: max(group.all_gather(own))
    )
    figures = Figures(
        images_per_second=sum(group.all_gather(measured.images_per_second)),
        milliseconds=max(group.all_gather(measured.milliseconds(50))),
        milliseconds_p90=max(group.all_gather(measured.milliseconds(90))),
        peak_bytes=max(group.all_gather(peak_memory())),
    )
    if part.name in measured_parts.NAMES_OF_TRAINING and reads_clock:
        waiting = max(group.all_gather(float(measured.waited.sum() / measured.seconds.sum())))
        figures = dataclasses.replace(figures, waiting_for_data=waiting)
    return figures


def _conditions(
    config: ConfigDict, table: labels.Table, strategy: tf.distribute.Strategy, group: process_group.ProcessGroup
) -> Conditions:
    devices = strategy.num_replicas_in_sync
    images = config.global_batch // devices // config.runtime.microbatches
    classes = len(model_build.id_of_class(config.labels, table))
    cost = training_build.estimate_cost(config, classes)
    gpus = len(device_memory.local_gpus())
    return Conditions(
        device='GPU' if gpus else 'CPU',
        devices=devices,
        workers=group.size,
        cores=sum(group.all_gather(host.cores())),
        global_batch=config.global_batch,
        crop=list(config.data.crop),
        precision=config.precision,
        jit_compile=model_build.jit(config, devices) != 'off',
        step_flops_per_image=cost.step_flops,
        matrix_flops_per_second=sum(group.all_gather(device_speed.matrix_flops(config.precision) * max(gpus, 1))),
        estimated_peak_bytes=step_cost.step_bytes(cost, images),
        expected_milliseconds=1000 * max(group.all_gather(checks.expected_step_seconds(config, classes, strategy))),
        config=json.loads(config.to_json()),
    )


def _forget_peak_memory() -> None:
    device_memory.forget_gpu_peak()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc: what is free, which `host.keep_freed_memory` keeps
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # proc(5): the peak resident set size


def peak_memory() -> int:
    """Returns the most bytes that were in use at a time since `_forget_peak_memory`: on the fullest of this process's
    GPUs, or by the process itself where there is no GPU."""
    if device_memory.local_gpus():
        return device_memory.gpu_peak_bytes()
    status = pathlib.Path('/proc/self/status').read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith('VmHWM:')))

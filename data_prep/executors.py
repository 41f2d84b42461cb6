"""Two executors of the work on shards: processes on this machine, or Apache Beam wherever it runs."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from data_prep import shards
from launch import entry, host, progress

_NOT_FORKED = {'tensorflow', 'fsspec'}  # their threads are missing in a copy; epath imports them for remote paths


def run_local(todo: list[shards.Shard], settings: shards.Settings, workers: int) -> None:
    """Writes the shards in `workers` processes, which end with this one whatever happens to it.

    Raises:
      KeyboardInterrupt: on Ctrl-C or SIGTERM, after the workers have ended; at most a pair each is waited for.
      UserError: PEER_LOST if a worker was killed.
    """
    with worker_pool(workers) as pool, progress.show(sum(len(shard.pairs) for shard in todo), 'image') as advance:
        for done in in_pool(pool, shards.write_shard, todo, settings):
            advance(done)


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[concurrent.futures.Executor]:
    """Starts processes that do without TensorFlow and TFDS, and that are told to stop when the block is left early.

    Where processes cannot share semaphores, as in a container without /dev/shm, threads of this one take their place.
    """
    context = multiprocessing.get_context('fork' if _may_fork() else 'spawn')
    pool: concurrent.futures.Executor
    try:
        stopping = context.Event()
        pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (stopping,))
    except OSError as error:
        print(f'Note: /dev/shm: {error.strerror}: threads of one process do the work, more slowly.', flush=True)
        stopping, pool = shards.stop, concurrent.futures.ThreadPoolExecutor(workers)
    try:
        yield pool
    except BaseException:
        stopping.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _may_fork() -> bool:
    """Whether a copy of this process would work: half a second sooner than one that has to import everything again."""
    return sys.platform == 'linux' and not _NOT_FORKED & sys.modules.keys()


def in_pool(pool: concurrent.futures.Executor, work: Callable, items: list, *arguments) -> Iterator:
    """Yields the results of `work(item, *arguments)`, as they come.

    Raises:
      UserError: PEER_LOST if a worker was killed.
    """
    with _interrupts_ignored():  # inherited by the processes that this starts: Ctrl-C is this process's business
        futures = [pool.submit(work, item, *arguments) for item in items]
    try:
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise entry.UserError(
            entry.PEER_LOST,
            'a worker process was killed, perhaps for lack of memory. Run the same command again, with fewer --workers '
            'if it happens again.',
        ) from error


def terminate_like_interrupt() -> None:
    """Makes SIGTERM, as a scheduler sends it, end the program as Ctrl-C does."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def run_beam(todo: list[shards.Shard], settings: shards.Settings, options: list[str]) -> None:
    """Writes the shards in a Beam pipeline; `options` are Beam's own, e.g. ['--runner=DataflowRunner'].

    Raises:
      UserError: BAD_CONFIG if Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options import pipeline_options
    except ImportError as error:
        raise entry.UserError(
            entry.BAD_CONFIG, f"--engine=beam needs Apache Beam ({error}): pip install 'unet-cityscapes[beam]'"
        ) from error
    with beam.Pipeline(options=pipeline_options.PipelineOptions(options)) as pipeline:
        _ = (
            pipeline
            | 'Shards' >> beam.Create(todo)
            | 'Spread' >> beam.Reshuffle()
            | 'Write' >> beam.Map(shards.write_shard, settings)
        )


def _start_worker(stopping) -> None:
    """Follows the parent process: a worker of the executor would outlive its sudden death, and write on."""
    parent = multiprocessing.parent_process()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all processes of a job; the parent answers it
    host.keep_freed_memory()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    def stop_when_told() -> None:
        stopping.wait()
        shards.stop.set()

    threading.Thread(target=end_with_parent, daemon=True).start()
    threading.Thread(target=stop_when_told, daemon=True).start()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

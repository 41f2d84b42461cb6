"""Quiet TensorFlow with four virtual CPU devices for the tests of this process, and which of them start others."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import sys
import types

import pytest

_PROCESS_EVENTS = ('subprocess.Popen', 'os.fork', 'os.forkpty', 'os.posix_spawn')
_running: pytest.Item | None = None


@pytest.fixture(scope='session', autouse=True)
def devices() -> list[str]:
    """Set up before any test of this process, since TensorFlow's devices are fixed by its first operation."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices('CPU')[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    return [f'/cpu:{number}' for number in range(4)]


@pytest.fixture(scope='session')
def mirrored(devices):
    """Number of replicas -> a MirroredStrategy over that many virtual devices."""
    import tensorflow as tf

    return lambda count: tf.distribute.MirroredStrategy(
        devices[:count], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks with `process` what mentions subprocess or multiprocessing, itself or in what it calls within tests/."""
    for item in items:
        fixtures = [
            definition.func for of_name in item._fixtureinfo.name2fixturedefs.values() for definition in of_name
        ]
        if any(_mentions_processes(function, set()) for function in (item.function, *fixtures)):
            item.add_marker('process')


def _mentions_processes(function: object, seen: set[object]) -> bool:
    function = getattr(function, '__wrapped__', function)
    if not isinstance(function, types.FunctionType) or function in seen or not _is_ours(function.__module__):
        return False
    seen.add(function)
    names = _names(function.__code__)
    found = [function.__globals__.get(name) for name in names]
    modules = [value for value in found if isinstance(value, types.ModuleType)]
    if any(module.__name__ in ('subprocess', 'multiprocessing') for module in modules):
        return True
    called = [getattr(module, name, None) for module in modules if _is_ours(module.__name__) for name in names]
    return any(_mentions_processes(value, seen) for value in (*found, *called))


def _is_ours(module: str) -> bool:
    return module.partition('.')[0] == 'tests'


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    global _running
    _running = item
    try:
        return (yield)
    finally:
        _running = None


@sys.addaudithook
def _no_process_unmarked(event: str, _: tuple) -> None:
    """Whatever starts a process unseen by the search above fails until its test is marked by hand."""
    if event in _PROCESS_EVENTS and _running is not None and not _running.get_closest_marker('process'):
        raise RuntimeError(f'{_running.nodeid} starts a process: mark it with @pytest.mark.process')

"""The examples in docstrings are true: commands are taken by their programs, and code runs or at least fits.

Every name that a module's synopsis calls exists and takes the arguments that it is given. What a small record folder
and images suffice for is executed as well.
"""

import ast
import builtins
import functools
import importlib
import inspect
import json
import pathlib
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest

from data_prep import labels, records
from tests import tiny, trees
from unet.evaluation import metrics
from unet.models import step_cost, unet
from unet.training import workdir

PACKAGES = ('configs', 'launch', 'data_prep', 'unet')
MODULES = sorted(
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages([str(tiny.ROOT / package)], f'{package}.')
    if not module.name.rpartition('.')[2].startswith('_')
)
ALIASES = {'np': 'numpy', 'tf': 'tensorflow', 'keras': 'keras', 'pathlib': 'pathlib', 'epath': 'etils.epath'}


def path_of(module: str) -> pathlib.Path:
    path = tiny.ROOT / module.replace('.', '/')
    return path.with_suffix('.py') if path.with_suffix('.py').exists() else path / '__init__.py'


def blocks(module: str) -> list[str]:
    """The indented paragraphs of the module's docstring, or all of it but the first line where that is code."""
    text = ast.get_docstring(ast.parse(path_of(module).read_text()), clean=False) or ''
    rest = text.partition('\n')[2]
    if parsed(rest):  # ruff takes off the indentation where nothing else follows
        return [rest.strip()]
    found = re.findall(r'(?:^ {4}.*\n?|^\n(?= {4}))+', rest, re.MULTILINE)
    return [textwrap.dedent(block).strip() for block in found]


def parsed(block: str) -> list[ast.stmt]:
    """The statements of a block, `...` for arguments left out as `**etc`; none if it is not Python."""
    try:
        return ast.parse(re.sub(r',\s*\.\.\.(?=[)}])', ', **etc', block)).body
    except SyntaxError:
        return []


def synopsis(module: str) -> ast.Module:
    """The code of the module's docstring."""
    return ast.Module([statement for block in blocks(module) for statement in parsed(block)], [])


def leaves_out(module: str) -> bool:
    """Whether the code has `...` among its arguments."""
    calls = [node for node in ast.walk(synopsis(module)) if isinstance(node, ast.Call)]
    values = [value for call in calls for value in (*call.args, *(keyword.value for keyword in call.keywords))]
    return any(ast.unparse(value) in ('...', 'etc') for value in values)


# Without modules that define flags: every program has its own, which do not fit into one process.
SHOWN = [module for module in MODULES if synopsis(module).body and 'flags.DEFINE_' not in path_of(module).read_text()]


def resolve(name: str, module: types.ModuleType) -> object:
    """What a bare name means in a module's synopsis: its own global, itself, or the one module of that name."""
    if name in vars(module):
        return vars(module)[name]
    if name == module.__name__.rpartition('.')[2]:
        return module
    if name in ALIASES:
        return importlib.import_module(ALIASES[name])
    named = [other for other in MODULES if other.rpartition('.')[2] == name]
    return importlib.import_module(named[0]) if len(named) == 1 else getattr(builtins, name, None)


def defined(tree: ast.AST) -> set[str]:
    """Names that the code itself gives a meaning to."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return names | {
        alias.asname or alias.name.partition('.')[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def called(function: ast.expr, module: types.ModuleType, local: set[str]) -> object:
    """The object that an expression names; None if it hangs on a variable of the synopsis."""
    if isinstance(function, ast.Attribute):
        owner = called(function.value, module, local)
        return None if owner is None else getattr(owner, function.attr)
    if not isinstance(function, ast.Name) or function.id in local:
        return None
    found = resolve(function.id, module)
    assert found is not None, f'{module.__name__}: its synopsis calls {function.id}, and there is no such thing'
    return found


@pytest.mark.parametrize('module', SHOWN)
def test_what_a_synopsis_calls_exists_and_takes_these_arguments(module):
    tree, real = synopsis(module), importlib.import_module(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert hasattr(importlib.import_module(node.module), alias.name) or importlib.import_module(
                    f'{node.module}.{alias.name}'
                )
        if not isinstance(node, ast.Call):
            continue
        function = called(node.func, real, defined(tree))
        if function is None or getattr(function, '__module__', '').partition('.')[0] not in PACKAGES:
            continue
        some = any(keyword.arg is None for keyword in node.keywords) or any(
            isinstance(argument, ast.Starred) or argument is Ellipsis for argument in node.args
        )
        signature = inspect.signature(function)
        given = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
        bind = signature.bind_partial if some else signature.bind
        bind(*given, **{keyword.arg: keyword.value for keyword in node.keywords if keyword.arg})


# Synopses that are not executed, and why not; that their names and arguments fit is tested above.
NOT_RUN = {
    'data_prep.scene_canvas': 'paints on a scene that is half drawn',
    'launch.kubectl': 'asks a cluster',
    'launch.slurm_jobs': 'asks a cluster',
    'unet.data.cache': 'keeps a file on a disk that not every host has',
    'unet.diagnostics.parts': 'goes on to train',
    'unet.diagnostics.selfcheck': 'trains',
    'unet.diagnostics.throughput': 'trains',
    'unet.distributed.cluster': 'sets up the devices of its process',
    'unet.distributed.process_group': 'waits for other processes',
    'unet.distributed.shutdown': 'ends when it is asked to',
    'unet.distributed.sockets': 'waits for other processes',
    'unet.evaluation.submission': 'takes images of the benchmark alone',
    'unet.train': 'trains',
    'unet.training.loop': 'trains',
}


@functools.cache
def small_cost() -> step_cost.Cost:
    return step_cost.estimate(unet.build_unet(unet.Architecture(19, width=8, depth=3), image_size=(64, 96)), slots=2)


@pytest.fixture
def world(tmp_path, monkeypatch, mirrored) -> dict[str, object]:
    """A folder with what the synopses read, as the current one, and values for the names that they use."""
    size = (64, 96)
    data_dir = tmp_path / 'data/cityscapes'
    tiny.write_folder(data_dir, train=tiny.scenes(24, size), validation=tiny.scenes(1, size))
    trees.write_tree(tmp_path / 'dataset', {'train': ['ulm_1']})
    split = records.read_split(data_dir, 'validation')
    image, label = tiny.scene(size, seed=1)
    (tmp_path / 'configs').symlink_to(tiny.ROOT / 'configs')
    for name in ('photos/a.png', 'more/a.jpg', 'drive.mp4'):
        trees.write(tmp_path, name, tiny.png(image))
    (tmp_path / 'pictures').mkdir()
    trees.write(tmp_path, 'in/train/1.png', tiny.png(image))
    trees.write(tmp_path, 'gt/train/1.png', tiny.png(image * 0))
    (tmp_path / 'pairs.csv').write_text('image,label,split\nin/train/1.png,gt/train/1.png,train\n')
    for name in ('cityscapes', 'a', 'b'):
        shutil.copytree(tiny.ROOT / 'tests/before/run', tmp_path / 'runs' / name)
    name = f'dataset/gtFine/val/x/{split.image_ids[0]}_gtFine_instanceIds.png'
    trees.write(tmp_path, name, tiny.png(label.astype(np.uint16)))
    monkeypatch.chdir(tmp_path)
    confusion = np.eye(labels.num_ids(labels.CITYSCAPES), dtype=np.int64)
    return {
        'config': workdir.read_config('runs/cityscapes'),
        'confusion': confusion,
        'cost': small_cost(),
        'data_dir': data_dir,
        'encoded': tiny.png(image),
        'eval_split': split,
        'image': image,
        'images': image[None],
        'num_ids': labels.num_ids(labels.CITYSCAPES),
        'number': 0,
        'predict': lambda images: images[..., 0] * 0,
        'prediction': label,
        'scores': metrics.scores(confusion, labels.CITYSCAPES),
        'seed': 0,
        'split': split,
        'strategy': mirrored(1),
        'table': labels.CITYSCAPES,
        'truth': label,
    }


@pytest.mark.parametrize('module', [module for module in SHOWN if module not in NOT_RUN and not leaves_out(module)])
def test_a_synopsis_runs(module, world):
    tree, real = synopsis(module), importlib.import_module(module)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - world.keys() - defined(tree)
    code = compile(ast.fix_missing_locations(tree), module, 'exec')
    exec(code, world | {name: resolve(name, real) for name in names} | {'__name__': module})


def commands() -> dict[str, tuple[str, list[str]]]:
    """Where and what -> program and arguments, of the command lines in docstrings."""
    found = {}
    for module in MODULES:
        for block in blocks(module):
            for line in block.replace('\\\n', ' ').splitlines():
                if line.startswith('python -m '):
                    line = re.sub(r'   +\(.*', '', line)  # what is remarked on it
                    _, _, program, *arguments = shlex.split(line, comments=True)
                    if program == 'launch.pod_entrypoint':  # the rest is the pod's own
                        arguments = arguments[: arguments.index('--')]
                    found[f'{module}: {line}'] = (program, arguments)
    return found


@pytest.mark.check
def test_command_lines_are_taken_by_their_programs():
    wanted = {}
    for program, arguments in commands().values():
        wanted.setdefault(program, []).append(arguments)
    done = subprocess.run(
        [sys.executable, '-m', 'tests.dry_commands'],
        cwd=tiny.ROOT,
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    for where, (program, arguments) in commands().items():
        assert 'outcomes' in outcomes[program], f'{where}\n{outcomes[program]}'
        outcome = outcomes[program]['outcomes'][wanted[program].index(arguments)]
        assert outcome['status'] == 0, f'{where}\n{outcome["output"]}'


def test_the_search_for_examples_finds_them():
    """What looks like code is code: a mistake in its syntax must not make it a table."""
    for module in MODULES:
        for block in blocks(module):
            looks = re.search(r'^(\w+\.)+\w+\(|^\w+ = |^(with|for|from|import) ', block, re.MULTILINE)
            assert not looks or parsed(block), f'{module}:\n{block}'
    assert {'unet.train', 'unet.models.unet', 'launch.entry'} <= set(SHOWN)
    assert len(commands()) > 15

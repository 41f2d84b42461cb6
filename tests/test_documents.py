"""What README.md, docs/ and WORKSPACE.md say about commands, flags, fields, files and names is so.

Every command is parsed by its own program, with its config; launchers check theirs with --dry_run. That the programs do
what is said of them, on small records, is tested in tests/door, tests/data_prep and tests/launch.
"""

import ast
import functools
import itertools
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.check

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [
    'README.md',
    'WORKSPACE.md',
    'CHANGELOG.md',
    'CONTRIBUTING.md',
    *(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md')),
]
USED = [
    name for name in DOCUMENTS if name not in ('WORKSPACE.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'docs/design.md')
]  # by users
PACKAGES = ('configs', 'data_prep', 'launch', 'unet', 'benchmarks', 'tests')
DOORS = ('data_prep', 'launch', 'unet')  # packages with programs for users
# Lines that flags in a table of docs/clusters.md may be added to.
BASES = {
    'launch.local': '--workers=2 --workdir=runs/x -- --config=configs/cityscapes.py',
    'launch.slurm': '--workdir=runs/x -- --config=configs/cityscapes.py',
    'launch.kubernetes': '--image=unet:1 --pvc=data:/data --workdir=/data/runs/x --data_dir=/data/cityscapes '
    '-- --config=configs/cityscapes.py',
}
OTHERS = ('backend', 'logdir', 'model_base_path', 'output', 'signal')  # flags of programs that are not ours
# Begin so: what a run or a build makes, and what the documents call a user's own.
MADE = ('demo/', 'runs/', 'data/', 'checkpoints/', 'best/', 'tensorboard/', 'pictures/', 'export/', 'building/')
METRICS = ('train/', 'eval/', 'time/')
BEYOND = ('config', 'tensorflow', 'tf', 'Checkpoint')  # names that begin so are another project's


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def blocks_of(text: str) -> list[str]:
    """Lines of fenced blocks without a language, those that end with a backslash joined to the next."""
    blocks = re.findall(r'^```\n(.*?)^```$', text, re.M | re.S)
    return [line.partition('  #')[0].strip() for block in blocks for line in block.replace('\\\n', ' ').splitlines()]


def prose_of(text: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S)


def spans_of(text: str) -> list[str]:
    return re.findall(r'`([^`\n]+)`', prose_of(text))


def modules() -> dict[str, pathlib.Path]:
    """Dotted name -> file, of all of the project's modules."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob('*.py')]
    return {'.'.join(file.relative_to(ROOT).with_suffix('').parts): file for file in files}


@functools.cache
def programs() -> dict[str, str]:
    """What a document may call a program -> its module: `unet.main`, and `build_tfrecords` by itself."""
    found = {name: name for name, file in modules().items() if '\nif __name__ ==' in file.read_text()}
    return found | {name.partition('.')[2]: name for name in found if name.startswith('data_prep.')}


def command_of(line: str) -> tuple[str, list[str]] | None:
    """The module and the arguments of a line that runs one of the project's programs."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation mark of prose
        return None
    if words[:2] == ['python', '-m']:
        words = words[2:]
        assert words[0] in programs() or words[0].partition('.')[0] not in PACKAGES, f'{line}: no such program'
    if not words or words[0] not in programs():
        return None
    if len(words) == 1 and not line.startswith('python'):
        return None
    return programs()[words[0]], words[1:]


def commands() -> dict[str, tuple[str, list[str]]]:
    """Where and what -> module and arguments, of all commands in the documents for users.

    Config fields by themselves stand for a command that sets them.
    """
    found = {}
    for name in USED:
        for line in blocks_of(text_of(name)) + spans_of(text_of(name)):
            sets_fields = re.match(r'--config\.[\w.]+=', line)
            command = command_of(f'unet.main --config=configs/cityscapes.py {line}' if sets_fields else line)
            if command:
                found[f'{name}: {line}'] = command
    return found


def flags_of_tables() -> dict[str, list[tuple[str, list[str]]]]:
    """Flags by themselves in the tables of docs/clusters.md -> the launchers' lines that they may be part of."""
    found = {}
    rows = re.findall(r'^\|.*', text_of('docs/clusters.md'), re.M)
    for span in spans_of('\n'.join(rows)):
        if re.match(r'--\w+=?', span):
            words = shlex.split(span)
            lines = {launcher: shlex.split(base) for launcher, base in BASES.items()}
            at = {launcher: line.index('--') for launcher, line in lines.items()}
            found[span] = [(name, [*line[: at[name]], *words, *line[at[name] :]]) for name, line in lines.items()]
    return found


@functools.cache
def ran() -> dict[str, dict]:
    """Program -> the names of its `flags`, and `outcomes`: what became of its commands, by their arguments."""
    wanted = {name: [] for name in set(programs().values()) if name.partition('.')[0] in DOORS}
    for module, arguments in [*commands().values(), *itertools.chain(*flags_of_tables().values())]:
        wanted.setdefault(module, []).append(arguments)
    done = subprocess.run(
        [sys.executable, '-m', 'tests.dry_commands'],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for module, lines in wanted.items():
        assert 'outcomes' in found[module], f'{module}: {found[module]}'
        outcomes = zip(lines, found[module]['outcomes'], strict=True)
        found[module]['outcomes'] = {shlex.join(line): outcome for line, outcome in outcomes}
    return found


def outcome_of(module: str, arguments: list[str]) -> dict:
    return ran()[module]['outcomes'][shlex.join(arguments)]


def test_every_command_is_one_that_its_program_takes():
    assert len(commands()) > 40
    for where, command in commands().items():
        assert outcome_of(*command)['status'] == 0, f'{where}\n{outcome_of(*command)["output"]}'


def test_every_program_that_users_have_is_shown():
    internal = {'launch.pod_entrypoint', 'data_prep.stage_tfrecords'}  # which launchers start
    doors = {name for name in programs().values() if name.partition('.')[0] in DOORS}
    assert doors - internal <= {module for module, _ in commands().values()}


def test_flags_of_launchers_by_themselves_are_taken_by_one_of_them():
    assert len(flags_of_tables()) > 20
    for span, lines in flags_of_tables().items():
        found = [outcome_of(*line) for line in lines]
        assert not all(outcome['status'] for outcome in found), f'{span}\n{found}'


def test_every_flag_is_one_of_some_program():
    known = {flag for program in ran().values() for flag in program['flags']} | {'config', 'help', *OTHERS}
    for name in DOCUMENTS:
        for flag in re.findall(r'(?<![\w=-])--([A-Za-z_]\w*)', prose_of(text_of(name))):
            assert flag in known, f'{name}: --{flag}'


@functools.cache
def parsed(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


def test_every_config_field_exists():
    from configs import default
    from configs.validation import flatten

    fields = set(flatten(default.get_config()))
    sections = {name.rpartition('.')[0] for name in fields}
    for name in DOCUMENTS:
        for field in re.findall(r'(?<!\w)config\.([a-z_0-9.]*[a-z_0-9])', text_of(name)):
            assert field in fields | sections | {'json'}, f'{name}: config.{field}'


def test_lengths():
    assert len(text_of('README.md').splitlines()) <= 150
    assert len(text_of('WORKSPACE.md').splitlines()) <= 120


def anchors(text: str) -> set[str]:
    return {
        re.sub(r'[^\w -]', '', line.lstrip('# ').lower()).replace(' ', '-')
        for line in text.splitlines()
        if line[:1] == '#'
    }


def test_every_link_leads_somewhere():
    for name in DOCUMENTS:
        for target in re.findall(r'\]\(([^)\s]+)\)', prose_of(text_of(name))):
            if '://' not in target:
                path, _, anchor = target.partition('#')
                file = (ROOT / name).parent / path if path else ROOT / name
                assert file.exists(), f'{name}: {target}'
                assert not anchor or anchor in anchors(file.read_text()), f'{name}: {target}'


def test_every_document_is_reached_from_the_readme():
    linked = set(re.findall(r'\]\(([^)\s]+\.md)\)', text_of('README.md')))
    assert linked == set(DOCUMENTS) - {'README.md'}


def test_every_file_exists():
    for name in DOCUMENTS:
        for span in spans_of(text_of(name)):
            if re.fullmatch(r'[\w.-]+/[\w./-]*', span) and not span.startswith(MADE + METRICS):
                assert (ROOT / span).exists(), f'{name}: {span}'
            elif re.fullmatch(r'\w+(\.\w+)*\.(py|jinja|c)', span):
                assert any(found for package in PACKAGES for found in (ROOT / package).rglob(span)), f'{name}: {span}'


def test_every_metric_exists():
    code = ''.join(file.read_text() for name, file in modules().items() if name.startswith('unet.'))
    for name in DOCUMENTS:
        for span in spans_of(text_of(name)):
            if span.startswith(METRICS):
                assert f"'{span}'" in code or f"'{span.rpartition('/')[0]}/{{" in code, f'{name}: {span}'


def test_every_target_of_make_exists():
    targets = set(re.findall(r'^([a-z]+):', text_of('Makefile'), re.M))
    for name in DOCUMENTS:
        found = [
            line.split()[1]
            for line in blocks_of(text_of(name)) + spans_of(text_of(name))
            if re.match(r'make [a-z]', line)
        ]
        assert set(found) <= targets, name


def names_in(tree: ast.AST) -> dict[str, ast.AST]:
    """What the body of a module or class defines."""
    found = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return found


def resolves(dotted: str) -> bool:
    """Whether `unet.data.cache`, `cache.on_disk` or `input_pipeline.Reader.decode` is there."""
    parts = dotted.split('.')
    for count, module in itertools.product(range(len(parts), 0, -1), modules()):
        if f'.{module}'.endswith('.' + '.'.join(parts[:count])):
            tree = parsed(module)
            for part in parts[count:]:
                tree = names_in(tree).get(part) if tree is not None else None
            if tree is not None:
                return True
    return False


def test_every_module_and_function_of_the_map_exists():
    checked = 0
    for name in ('WORKSPACE.md', 'docs/design.md'):
        for span in spans_of(text_of(name)):
            dotted = re.fullmatch(r'([A-Za-z_]\w*)(\.[A-Za-z_]\w*)+', span)
            if (
                dotted
                and dotted[1] not in BEYOND
                and not span.endswith(('.py', '.json', '.jinja', '.txt', '.md', '.c'))
            ):
                assert resolves(span), f'{name}: {span}'
                checked += 1
    assert checked > 40


def rooms() -> dict[str, str]:
    """Folder -> the cell that names its modules, from the top of the map down."""
    return dict(re.findall(r'^\| `([a-z_/]+)/` \| [^|]* \| ([^|]*) \|$', text_of('WORKSPACE.md'), re.M))


def test_the_map_names_every_module_and_no_other():
    assert len(rooms()) == 13
    for room, cell in rooms().items():
        there = {file.stem for file in (ROOT / room).glob('*.py')} - {'__init__'}
        named = set(re.findall(r'`([a-z]\w*)`', cell)) - ({'unet'} - there)
        assert named == there, room


def test_rooms_import_from_those_further_down_alone():
    order = [room.replace('/', '.') for room in rooms()]
    for name in modules():
        room = name.rpartition('.')[0]
        for node in ast.walk(parsed(name)) if room in order else ():
            found = [f'{node.module}.{alias.name}' for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            for other in (module.rpartition('.')[0] for module in found if module in modules()):
                assert order.index(other) >= order.index(room), f'{name} imports from {other}'


def test_from_training_down_few_modules_see_a_config():
    order = list(rooms())
    below = order[order.index('unet/training') : order.index('data_prep')]
    seeing = {file for room in below for file in (ROOT / room).glob('*.py') if 'ConfigDict' in file.read_text()}
    assert {file.stem for file in seeing} == {'build', 'workdir', 'restore'}


def test_the_way_of_a_crop_is_short():
    way = text_of('WORKSPACE.md').partition('One crop in training')[2].partition('In evaluation')[0]
    calls = {span for span in spans_of(way) if re.fullmatch(r'[a-z_]+(\.\w+)+', span)}
    assert len(calls) <= 12

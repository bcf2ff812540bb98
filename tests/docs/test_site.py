"""The pages are built without a warning, and what they show can be typed."""

import ast
import html.parser
import importlib
import importlib.util
import inspect
import io
import pathlib
import re
import shlex
import sys
import urllib.parse

import pytest
from absl import flags

import si_jax
from configs import tradessi_cifar10
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.presets import PRESETS
from si_jax.attacks.searches import SEARCHES
from si_jax.cli import compare, corruptions, evaluate, figures, report, train
from si_jax.cli.page import parser as page_parser
from si_jax.data import sources
from si_jax.defenses import DEFENSES
from si_jax.training import recipe_fields
from tests.helpers.browser import look

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
CONFIGS = sorted(path for path in (ROOT / 'configs').glob('[a-z]*.py'))


class Links(html.parser.HTMLParser):
    """The targets and the anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ('href', 'src') and value:
                self.targets.append(value)
            elif name in ('id', 'name') and value:
                self.anchors.add(value)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The built pages by path, and the folder."""
    application = pytest.importorskip('sphinx.application', reason='builds the site')
    folder, log = tmp_path_factory.mktemp('site'), io.StringIO()
    app = application.Sphinx(
        ROOT / 'docs',
        ROOT / 'docs',
        folder / 'html',
        folder / 'doctrees',
        'html',
        status=None,
        warning=log,
        freshenv=True,
    )
    app.build()
    assert log.getvalue() == '' and app.statuscode == 0
    built = {path.resolve(): Links(path.read_text()) for path in (folder / 'html').glob('*.html')}
    assert len(built) > 15
    return folder / 'html', built


def test_every_link_of_the_site_leads_somewhere(site):
    folder, pages = site
    checked = 0
    for path, page in pages.items():
        for target in page.targets:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or target == '#':
                continue
            place = (folder / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            assert place.exists(), f'{path.name}: {target}'
            if parts.fragment and place.suffix == '.html' and place in pages:
                assert urllib.parse.unquote(parts.fragment) in pages[place].anchors, f'{path.name}: {target}'
                checked += 1
    assert checked > 100


def test_the_site_has_what_the_code_has(site):
    folder, _ = site

    def text(name: str) -> str:
        return re.sub('<[^>]+>', '', (folder / f'{name}.html').read_text())

    catalogue, configs, api = text('catalogue'), text('configs'), text('api')
    assert all(re.search(rf'^{name}$', catalogue, re.MULTILINE) for name in (*ATTACKS, *SEARCHES, *PRESETS))
    assert all(name in catalogue for name in DEFENSES) and 'trades + si' in catalogue
    assert all(f'{path.stem}' in configs for path in CONFIGS)
    assert all(field.name in configs for field in recipe_fields.fields(tradessi_cifar10.get_config()))
    assert all(name in api for name in si_jax.__all__)
    index = (folder / 'index.html').read_text()
    assert all(
        f'href="{path.stem}.html"' in index for path in (ROOT / 'docs').glob('*.md') if path.stem != 'index'
    )


@pytest.mark.parametrize('name', ['index', 'commands'])
def test_everyone_can_use_the_site_and_it_asks_for_nothing_from_elsewhere(site, name):
    path = site[0] / f'{name}.html'
    seen = look(path)
    assert seen.violations == [] and max(seen.overflow.values()) <= 0
    assert seen.requests and all(url.startswith('file:') for url in seen.requests)
    assert path.stat().st_size < 5_000_000


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_linked_file_exists(page):
    for link in re.findall(r'\]\((?!http|#)([^)#]+)', page.read_text()):
        assert (page.parent / link).exists(), link


def shown_commands() -> list[tuple[str, str]]:
    """(page, command) of all commands of ours, in blocks and in the text."""
    found = []
    for page in [*PAGES, *CONFIGS]:
        text = re.sub(r' \\\n\s*', ' ', page.read_text())
        for name, first in re.findall(r'\bfor (\w+) in (\w+)', text):  # of the shell: its first turn
            text = text.replace(f'${name}', first)
        for command in re.findall(r'python ((?:train|evaluate|report)\.py[^`\n]*|-m si_jax[^`\n]*)', text):
            command = re.split(r'  #|\s+\||  +|;', command)[0]
            found.append((page.name, re.sub(r'(\s+\(.*|[.,;:]+)$', '', command)))
    return found


def check_train(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    values = flags.FlagValues()
    config, _ = train.define(values)
    words = [train.FRACTION.sub(r'\g<1>0.5', word) for word in words if word != '--help']
    monkeypatch.setattr(sys, 'argv', ['train.py', *words])  # where the fields of a config are read
    assert values(sys.argv) == ['train.py'] and config.value.epochs > 0


def check_argparse(words: list[str]) -> None:
    command, *words = words
    if '--help' in words:
        words.remove('--help')
        assert len(words) < 2
        return
    if command == 'evaluate.py':
        own = {'compare': compare, 'corruptions': corruptions}.get(''.join(words[:1]))
        (own or evaluate).parser().parse_args(words[1:] if own else words)
    elif any(word.startswith('--figure') for word in words):
        given = figures.parser().parse_args(words)
        assert given.figure in figures.FIGURES
    elif any(word.startswith('--workdirs') for word in words):
        page_parser().parse_args(words)
    else:
        report.parser().parse_args(words)


COMMANDS = shown_commands()


def test_every_command_of_the_pages_parses(defenses_before, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sources, 'SOURCES', dict(sources.SOURCES))
    assert len(COMMANDS) > 100
    for page, command in COMMANDS:
        try:
            first, *words = shlex.split(command.replace('[', '').replace(']', ''))
            if first == 'train.py':
                if 'FILE' not in command:
                    check_train(words, monkeypatch)
            elif first == '-m':
                assert importlib.util.find_spec(words[0])
            else:
                check_argparse([first, *words])
        except (SystemExit, Exception) as error:
            raise AssertionError(f'{page}: {command}: {error}\n{capsys.readouterr().err}') from error


OURS = (
    'README training evaluation report tables audit compare attacks defenses pytorch figures table5 '
    'commands configs adaptive random'
)


@pytest.mark.parametrize('name', OURS.split())
def test_flags_in_the_text_exist(name):
    parsers = [evaluate.parser(), compare.parser(), report.parser(), figures.parser(), page_parser()]
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    known |= {f'--{flag}' for flag in train.flags.FLAGS} | {'--format'}
    known |= {f'--config.{field.name}' for field in recipe_fields.fields(tradessi_cifar10.get_config())}
    # Terms of other defenses than that one.
    known |= {f'--config.defense.weights.{term}' for row in DEFENSES.values() for term in row.outer}
    text = next(one for one in PAGES if one.stem == name).read_text()
    named = set(re.findall(r'(?<![\w-])--[a-z][\w.]+', text)) - {'--config.FIELD'}
    assert named and named <= known, named - known


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_python_blocks_name_what_exists(page):
    for block in re.findall(r'^```python\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] in (
                'si_jax',
                'configs',
            ):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f'{node.module}.{alias.name}')
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith('si_jax.'):
                thing = importlib.import_module('si_jax')
                for name in ast.unparse(node).split('.')[1:]:
                    thing = getattr(thing, name)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith('si_jax.'):
                check_call(node)


def check_call(node: ast.Call) -> None:
    """The keywords of a call of ours are parameters."""
    thing = importlib.import_module('si_jax')
    for name in ast.unparse(node.func).split('.')[1:]:
        thing = getattr(thing, name)
    parameters = inspect.signature(thing).parameters
    for keyword in node.keywords:
        assert keyword.arg is None or keyword.arg in parameters, (
            f'{ast.unparse(node.func)}({keyword.arg}=...)'
        )

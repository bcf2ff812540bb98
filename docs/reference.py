"""Tables that the code itself gives, for the pages: a directive `{of-code}` with the name of a table."""

import contextlib
import importlib
import inspect
import io
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import configs
import si_jax
from configs import at_cifar10
from si_jax import models
from si_jax.attacks.facts import facts
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.pgd import STARTS
from si_jax.attacks.presets import PRESETS, SCREENS, VARIANTS, Stage
from si_jax.attacks.searches import SEARCHES
from si_jax.data import SOURCES
from si_jax.paper import methods, report
from si_jax.paper.figures import FIGURES
from si_jax.paper.methods import grid, named, of_score
from si_jax.training import recipe_fields

CONFIGS = pathlib.Path(configs.__file__).parent
COMMANDS = {
    'train.py': ('si_jax.cli.train', None),
    'evaluate.py': ('si_jax.cli.evaluate', []),
    'evaluate.py compare': ('si_jax.cli.evaluate', ['compare']),
    'evaluate.py corruptions': ('si_jax.cli.evaluate', ['corruptions']),
    'report.py': ('si_jax.cli.report', []),
    'report.py --figure': ('si_jax.cli.report', ['--figure=1']),
    'report.py --workdirs': ('si_jax.cli.report', ['--workdirs=A']),
    'si_jax.cli.plan': ('si_jax.cli.plan', []),
    'si_jax.cli.export': ('si_jax.cli.export', []),
    'si_jax.cli.launch': ('si_jax.cli.launch', []),
    'benchmarks.conformance': ('benchmarks.conformance', []),
    'si_jax.cli.zoo': ('si_jax.cli.zoo', []),
}


def code(words: Iterable[str] | str) -> str:
    """Words as code."""
    return ' '.join(f'`{word}`' for word in ([words] if isinstance(words, str) else words))


def family() -> str:
    """The PGD family."""
    rows = []
    for name, attack in ATTACKS.items():
        climbs = [attack.objective, *filter(None, (attack.odd, attack.then))]
        start = next((key for key, value in STARTS.items() if value is attack.start), 'signs')
        rows.append(
            (
                code(name),
                ', then '.join(code(named(one)) for one in climbs),
                code(of_score(attack.score)),
                start,
                code('--steps') if attack.steps is None else attack.steps,
                code('--step_size') if attack.step_size is None else f'{attack.step_size:g} eps',
                'any' if attack.any_iterate else 'final',
                'yes' if facts(attack).reads_features else '',
            )
        )
    return grid(('attack', 'climbs', 'of', 'start', 'steps', 'step size', 'iterate', 'features'), rows)


def searches(classes: int = 10) -> str:
    """The searches, with as many classes."""
    rows = []
    for name, row in SEARCHES.items():
        search = Stage(name).search(classes)
        rows.append(
            (
                code(name),
                search.iterations - search.idle,
                'yes' if search.targeted else '',
                'none' if row.black_box else f'{row.gradients(classes):g} a query',
                'yes' if row.calibrated else '',
                'yes' if facts(row).reads_features else '',
            )
        )
    return grid(('search', 'iterations', 'targeted', 'gradients', 'one scale', 'features'), rows)


def presets() -> str:
    """The cascades."""
    rows = []
    for name, stages in PRESETS.items():
        shown = []
        for stage in stages:
            extra = [f'{stage.restarts} restarts'] * (stage.restarts > 1)
            extra += [f'{stage.eot_samples} EoT samples'] * (stage.eot_samples > 1)
            by = ' of MALT' if stage.choice == 'malt' else ''
            extra += [f'{stage.targets} targets{by}'] * stage.search(10).targeted
            shown.append(code(stage.attack) + (f' ({", ".join(extra)})' if extra else ''))
        kind = 'a screen' if name in SCREENS else 'a variant' if name in VARIANTS else 'a protocol'
        rows.append((code(name), ', '.join(shown), kind))
    return grid(('preset', 'stages', 'is'), rows)


def architectures() -> str:
    """The networks, with their sizes for ten classes of CIFAR images."""
    rows = []
    for name, architecture in models.ARCHITECTURES.items():
        network = models.create(name, num_classes=10)
        shapes = jax.eval_shape(
            lambda key, network=network: network.init(key, jnp.zeros((1, 32, 32, 3)))['params'],
            jax.random.key(0),
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        features = jax.eval_shape(
            lambda key, network=network: network.init_with_output(key, jnp.zeros((1, 32, 32, 3)))[0].features,
            jax.random.key(0),
        ).shape[1]
        norm = 'yes' if architecture.batch_norm else ''
        rows.append((code(name), code(architecture.variants), f'{count:,}', features, norm))
    return grid(('architecture', 'variants', 'parameters', 'features', 'batch normalisation'), rows)


def datasets() -> str:
    """The data sets."""
    rows = [
        (
            code(name),
            ' × '.join(map(str, row.shape)),
            row.num_classes,
            f'padded by {row.crop}' if row.crop else '',
            'yes' if row.flip else '',
            row.described,
        )
        for name, row in SOURCES.items()
    ]
    return grid(('data set', 'image', 'classes', 'random crop', 'flip', 'comes from'), rows)


def config_fields() -> str:
    """All fields of a config, with the values of configs/at_cifar10.py."""
    rows = [
        (code(name), code(recipe_fields.show(value)), comment)
        for name, value, comment in recipe_fields.fields(at_cifar10.get_config())
    ]
    return grid(('field', f'value in {code("at_cifar10")}', ''), rows)


def config_modules() -> dict[str, Any]:
    """The configs by name, the paper's before the others."""
    names = sorted(path.stem for path in CONFIGS.glob('[a-z]*.py'))
    return {
        name: importlib.import_module(f'configs.{name}') for name in sorted(names, key=lambda x: '_' not in x)
    }


def changes(config: Any) -> str:
    """What a config has otherwise than configs/at_cifar10.py."""
    before = dict(recipe_fields.flat(at_cifar10.get_config().to_dict()))
    after = dict(recipe_fields.flat(config.to_dict()))
    shown = [
        f'`{name}={recipe_fields.show(value)}`' for name, value in after.items() if before.get(name) != value
    ]
    shown += [f'no `{name}`' for name in before if name not in after]
    return ', '.join(shown) or 'nothing'


def config_files() -> str:
    """Every file of configs/: its docstring, and what it changes."""
    parts = []
    for name, module in config_modules().items():
        title, _, rest = module.__doc__.partition('\n\n')
        changed = (
            '' if module is at_cifar10 else f'Otherwise than `at_cifar10`: {changes(module.get_config())}.'
        )
        parts.append('\n\n'.join([f'## {name}', ' '.join(title.split()), rest.strip(), changed]))
    return '\n\n'.join(parts)


def figure_rows() -> str:
    """The figures and their options."""
    rows = [(code(name), row.about, code(row.usage.split())) for name, row in FIGURES.items()]
    return grid(('`--figure`', 'shows', 'options'), rows)


def table_rows() -> str:
    """The tables of report.py."""
    rows = [
        (code(name), table.title, len(table.rows), ', '.join(column.title for column in table.columns))
        for name, table in report.TABLES.items()
    ]
    return grid(('`--table`', 'title', 'rows', 'columns'), rows)


def help_of(command: str) -> str:
    """What --help of a command prints."""
    module, before = COMMANDS[command]
    if before is None:
        train = importlib.import_module(module)
        example = importlib.import_module(f'configs.{pathlib.Path(train.EXAMPLE).stem}')
        return train.page(train.EXAMPLE, example.get_config()).strip()
    main, out = importlib.import_module(module).main, io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*before, '--help'])
    return out.getvalue().strip()


def helps() -> str:
    """The help of all commands."""
    parts = []
    for command in COMMANDS:
        name = f'python {command}' if '.py' in command else f'python -m {command}'
        parts.append(f'## {name}\n\n```text\n{help_of(command)}\n```')
    return '\n\n'.join(parts)


def api_rest() -> str:
    """The names of si_jax that docs/api.md does not place itself."""
    page = pathlib.Path(__file__).with_name('api.md').read_text()
    lines = []
    for name in si_jax.__all__:
        if re.search(rf':: {name}$', page, re.MULTILINE):
            continue
        thing = getattr(si_jax, name)
        kind = 'autoclass' if inspect.isclass(thing) else 'autofunction' if callable(thing) else 'automodule'
        lines += [f'.. {kind}:: si_jax.{name}', '   :members:' * (kind != 'autofunction')]
    return '\n'.join(['```{eval-rst}', *lines, '```']) if lines else ''


TABLES: dict[str, Callable[[], str]] = {
    'api-rest': api_rest,
    'family': family,
    'searches': searches,
    'presets': presets,
    'defenses': lambda: grid(methods.HEAD, methods.rows(code)),
    'architectures': architectures,
    'datasets': datasets,
    'config-fields': config_fields,
    'configs': config_files,
    'figures': figure_rows,
    'tables': table_rows,
    'helps': helps,
}


class OfCode(SphinxDirective):
    """A table of `TABLES`, as Markdown in the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(TABLES[self.arguments[0]](), allow_section_headings=True)


def plain(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: bars and stars mean themselves."""
    lines[:] = [line.replace('\\', '\\\\').replace('*', '\\*').replace('|', '\\|') for line in lines]


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_directive('of-code', OfCode)
    app.connect('autodoc-process-docstring', plain, priority=400)
    return {'parallel_read_safe': True}

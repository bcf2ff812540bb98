"""Every example runs: small here, through the arguments of its `main`; the notebooks as they are."""

import ast
import json
import pathlib
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.processes import compiled_as_the_suite, environment, quick

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / 'examples'
NAMES = ('linen_model', 'nnx_model', 'jax_model', 'own_attack', 'own_data', 'own_defense')
ATTACKS = {
    'linen_model': ['fgsm', 'pgd', 'sipgd'],
    'nnx_model': ['fgsm', 'pgd', 'sipgd'],
    'jax_model': ['fgsm', 'pgd', 'sipgd'],
    'own_attack': ['pgd', 'momentum', 'pgd-mine'],
    'own_data': ['pgd'],
    'own_defense': ['pgd', 'sipgd'],
}


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """Accuracies by example, from one process of its own: the defense that is registered stays there."""
    workdir = tmp_path_factory.mktemp('runs') / 'own_defense'
    script = f"""
import json, warnings
warnings.filterwarnings('error', module='examples')
from examples import {', '.join(NAMES)}
small = {{'examples': 40, 'steps': 2}}
results = {{
    'linen_model': linen_model.main(epochs=8, **small),
    'nnx_model': nnx_model.main(epochs=8, **small),
    'jax_model': jax_model.main(epochs=8, **small),
    'own_attack': own_attack.main(**small),
    'own_data': own_data.main(workdir={str(workdir.with_name('own_data'))!r}, epochs=8, **small),
    'own_defense': own_defense.main(workdir={str(workdir)!r}, epochs=1, limit=64, **small),
}}
print(json.dumps({{name: result.accuracy for name, result in results.items()}}))
"""
    return json.loads(quick('-c', script).splitlines()[-1]), workdir


@pytest.mark.parametrize('name', NAMES)
def test_it_runs(results, name):
    accuracy = results[0][name]
    assert list(accuracy) == ['clean', *ATTACKS[name], 'worst_case']
    if name == 'own_data':
        assert accuracy['clean'] > 0.8
    elif name != 'own_defense':  # one epoch on 64 images teaches nothing
        assert accuracy['worst_case'] < accuracy['clean'] and accuracy['clean'] > 0.6


def test_the_defense_of_the_example_is_what_was_trained(results):
    config = json.loads((results[1] / 'config.json').read_text())
    assert config['defense']['name'] == 'squared'
    assert config['defense']['weights'] == {'natural_ce': 1.0, 'distance': 6.0}


def test_every_example_is_tested_and_says_how_it_is_run():
    scripts = {path.stem for path in EXAMPLES.glob('*.py')} - {'__init__'}
    assert scripts == {*NAMES, 'quickstart'}
    for name in scripts:
        text = (EXAMPLES / f'{name}.py').read_text()
        assert f'    python -m examples.{name}' in text and len(text.splitlines()) < 160
    notebooks = sorted(path.stem for path in EXAMPLES.glob('*.ipynb'))
    assert notebooks == ['figure1', 'jax_tutorial', 'torch_tutorial']


def executed(name, folder):
    """The code cells of a notebook after it was run in `folder`, and what they printed."""
    notebook = nbformat.read(EXAMPLES / f'{name}.ipynb', as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    # The kernel of this environment, whatever kernels the user has.
    (folder / 'kernels' / 'python3').mkdir(parents=True)
    argv = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    spec = {'argv': argv, 'display_name': 'Python 3', 'language': 'python'}
    (folder / 'kernels' / 'python3' / 'kernel.json').write_text(json.dumps(spec))
    client = NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(folder)}})
    client.create_kernel_manager().kernel_spec_manager.kernel_dirs.insert(0, str(folder / 'kernels'))
    client.execute(env=environment(compiled_as_the_suite()) | {'JUPYTER_RUNTIME_DIR': str(folder)})
    return code, ''.join(output.get('text', '') for cell in code for output in cell.outputs)


def test_the_tutorial_for_jax(tmp_path):
    code, text = executed('jax_tutorial', tmp_path)
    tables = [output.data['text/html'] for cell in code for output in cell.outputs if 'data' in output]
    assert len(tables) == 2 and all('SI-PGD' in table or 'sipgd' in table for table in tables)
    fooled = int(re.search(r'(\d+) of 100 images fool the network', text)[1])
    assert fooled > 30 and 'the largest change of a pixel: 0.1000' in text
    # Loud logits mislead PGD and nobody else, and the result says so.
    accuracy = ast.literal_eval(re.search(r'^\{.+\}$', text, re.MULTILINE)[0])
    assert float(accuracy['pgd']) > float(accuracy['pgd-gap']) + 0.2 and 'warning: ' in text


def test_the_tutorial_for_pytorch(tmp_path):
    code, text = executed('torch_tutorial', tmp_path)
    tables = [output.data['text/html'] for cell in code for output in cell.outputs if 'data' in output]
    assert len(tables) == 2 and 'apgd-ce' in tables[0] and 'square(queries=200)' in tables[1]
    assert 'Tensor (100, 1, 8, 8)' in text
    assert float(re.search(r'accuracy in PyTorch on these images: (\S+)', text)[1]) < 0.7


def test_the_notebook_of_figure_1(tmp_path):
    code, text = executed('figure1', tmp_path)
    assert 'TRADES-SI' in text and text.count('SI-PGD at any') == 2
    pictures = [output.data for cell in code for output in cell.outputs if 'data' in output]
    assert len(pictures) == 1 and len(pictures[0]['image/png']) > 20_000
    numbers = json.loads((tmp_path / 'runs' / 'figures' / 'notebook.json').read_text())
    for curve in numbers['curves']:
        assert (
            curve['sipgd_spread_points'] == 0
            and max(curve['accuracy']['pgd']) > curve['best_pgd']['accuracy']
        )
        assert f'{curve["label"]}, natural accuracy {100 * curve["accuracy"]["clean"][0]:.1f} %' in text

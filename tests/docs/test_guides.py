"""The pages for those who bring a defense of their own, and how the project is cited."""

import json
import pathlib
import re
import shlex
import tomllib

import pytest
import yaml

from tests.helpers.processes import quick

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = {
    name: (ROOT / 'docs' / f'{name}.md').read_text()
    for name in ('adaptive', 'attack', 'own_defense', 'related', 'zoo')
}
PAPER = 'Scale-Invariant Adversarial Attack for Evaluating and Enhancing Adversarial Defenses'


def commands(page):
    return [shlex.split(line) for line in re.findall(r'^    (python .+)$', page, re.MULTILINE)]


def test_the_program_and_the_commands_of_the_adaptive_page(tmp_path):
    blocks = re.findall(r'```python\n(.*?)```', PAGES['adaptive'], re.DOTALL)
    given = commands(PAGES['adaptive'])
    assert len(blocks) == 5 and [words[:2] for words in given] == [['python', 'evaluate.py']] * 2
    script = tmp_path / 'page.py'
    script.write_text(
        '\n'.join(blocks)
        + f"""
import json, os, evaluate
os.chdir({str(tmp_path)!r})
codes = [evaluate.main(words[2:]) for words in {given!r}]
print(json.dumps({{'codes': codes, 'won': won, 'eot': averaged.accuracy['pgd'], 'plain': plain.accuracy}}))
"""
    )
    told = json.loads(quick(script).splitlines()[-1])
    assert told['codes'] == [0, 0]  # no check of the audit failed
    assert 0 < told['won']['unnoticed'] and told['eot'] < told['plain']['clean']
    audit = json.loads((tmp_path / 'audit.json').read_text())
    assert {'gradients', 'eps', 'black-box', 'binarization'} <= set(audit['checks'])
    transfer = json.loads((tmp_path / 'transfer.json').read_text())
    assert set(transfer['attacks']) == {'pgd', 'transfer-digits-at', 'transfer-digits-martsi'}


def test_the_config_of_the_page_on_own_defenses_is_trained_with_and_without_si(tmp_path, defenses_before):
    from si_jax.training.loop import run

    (block,) = re.findall(r'```python\n(.*?)```', PAGES['own_defense'], re.DOTALL)
    page: dict = {}
    exec(block, page)
    for si in (False, True):
        config = page['get_config']()
        config.defense = page['recipes'].defense('my_defense', si=si)
        config.epochs, config.batch_size, config.attack.steps = 1, 64, 1
        config.data.limit, config.data.validation = 128, 32
        config.evaluation.steps = 1
        run(config, str(tmp_path / str(si)))
        (line,) = (tmp_path / str(si) / 'metrics.jsonl').read_text().splitlines()
        figures = json.loads(line)
        assert {'train/natural_ce', 'train/distance'} <= set(figures)
        assert any('si' in name for name in figures if name.startswith('train/')) == si


def test_the_snippets_of_the_page_on_own_networks():
    pytest.importorskip('torch')
    for block in re.findall(r'```python\n(.*?)```', PAGES['attack'], re.DOTALL):
        page: dict = {}
        exec(block, page)
        assert {'clean', 'pgd', 'apgd-ce', 'worst_case'} == set(page['result'].accuracy)
        assert page['result'].accuracy['worst_case'] <= page['result'].accuracy['clean']


@pytest.mark.parametrize('name', PAGES)
def test_linked_files_exist(name):
    for link in re.findall(r'\]\((?!http)(.+?)\)', PAGES[name]):
        assert (ROOT / 'docs' / link).exists(), link


def test_the_citation_file():
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert cited['cff-version'] == '1.2.0' and cited['type'] == 'software'
    assert {'message', 'title', 'authors', 'version', 'license'} <= set(cited)
    assert (cited['title'], cited['version'], cited['license']) == (
        'si_jax',
        settings['tool']['hatch']['version']['fallback-version'],
        'Apache-2.0',
    )
    (paper,) = cited['references']
    assert paper['title'] == PAPER and paper['type'] == 'article'
    assert [one['family-names'] for one in paper['authors']] == ['Xu', 'Zhang', 'Li', 'Zhang']
    assert 'Xu, Zhang, Li and Zhang' in PAGES['related'] and PAPER in ' '.join(PAGES['related'].split())

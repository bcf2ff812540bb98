"""report.py --table: ours beside the paper's, from folders as the programs leave them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from si_jax.cli import report as program
from si_jax.errors import InputError
from si_jax.paper import paired, report
from si_jax.paper.cells import Training
from si_jax.paper.fitting import Value
from si_jax.paper.paper_tables import SCALES
from si_jax.paper.studies import STUDIES
from tests.helpers.folders import write_result, write_run

WHITE_BOX = {'clean': 8_400, 'pgd': 5_600, 'cw': 5_300, 'sipgd': 5_400, 'autoattack': 5_000}
DIGITS = {'clean': 380, 'pgd': 270, 'cw': 268, 'dlr': 272, 'sipgd': 269, 'autoattack': 250}
SI = Training('tradessi_cifar10')


def cells(folder, table='digits', **flags):
    """Labels to column to cell, from the JSON of a report."""
    made = json.loads(report.run(table=table, runs=str(folder), json=True, **flags))
    rows = {', '.join(row['labels']): {cell['column']: cell for cell in row['cells']} for row in made['rows']}
    return made, rows


def refused(folder, table='digits', **flags):
    with pytest.raises(InputError) as error:
        report.run(table=table, runs=str(folder), **flags)
    return str(error.value)


def test_ours_stands_beside_the_papers_with_difference_and_interval(tmp_path):
    write_run(tmp_path / 'whatever', SI)
    write_result(tmp_path / 'whatever' / 'evaluation' / 'a.json', WHITE_BOX, images=10_000,
                 dataset='cifar10', eps=8 / 255)  # fmt: skip
    made, rows = cells(tmp_path, '6')
    row = rows['ResNet18, CIFAR-10, TRADES-SI']
    paper = {'Natural': 84.05, 'PGD': 58.73, 'PGDCW': 53.56, 'SI-PGD': 54.77, 'AA': 50.60}
    for (column, number), count in zip(paper.items(), WHITE_BOX.values(), strict=True):
        cell = row[column]
        low, high = stats.binomtest(count, 10_000).proportion_ci(0.95, method='wilson')
        assert cell['paper'] == number
        assert cell['ours']['mean'] == pytest.approx(count / 100)
        assert cell['difference'] == pytest.approx(count / 100 - number)
        assert cell['ours']['ci95'] == pytest.approx([100 * low, 100 * high])
        assert cell['ours']['sd'] is None and cell['missing_seeds'] == []
    other = rows['ResNet18, CIFAR-10, TRADES']['PGD']
    assert other['ours'] is None and other['difference'] is None and other['missing_seeds'] == [0]
    assert not [line for line in made['missing'] if 'tradessi_cifar10.py ' in f'{line} ']
    # 32 rows of which one is measured.
    assert len(made['missing']) == 2 * 31

    text = report.run(table='6', runs=str(tmp_path), rows='TRADES-SI,ResNet18,CIFAR-10')
    (line,) = [line for line in text.splitlines() if line.startswith('  PGD ')]
    assert line.split() == ['PGD', '58.73', '56.00', '-', '-2.73', '[55.02,', '56.97]', '0']
    assert 'Missing' not in text and max(map(len, text.splitlines())) <= 100
    grid = report.run(table='6', runs=str(tmp_path), rows='TRADES-SI,ResNet18', markdown=True)
    assert '| ResNet18, CIFAR-10, TRADES-SI | 84.00 [83.27, 84.71] (paper 84.05) |' in grid
    assert '| ResNet18, CIFAR-100, TRADES-SI | missing (paper 60.17) |' in grid


def test_the_same_run_serves_every_table_that_has_it(tmp_path):
    write_run(tmp_path / 'run', SI)
    write_result(tmp_path / 'run' / 'evaluation' / 'a.json', WHITE_BOX, images=10_000, dataset='cifar10',
                 eps=8 / 255)  # fmt: skip
    for table, row in {
        '2': 'TRADES-SI, s = 15', '3': 'TRADES-SI, m = 0.2', '4': 'TRADES-SI, beta = 0.2',
        '10': 'CIFAR-10, TRADES-SI',
    }.items():  # fmt: skip
        _, rows = cells(tmp_path, table)
        assert [name for name, row in rows.items() if row['AA']['ours']] == [row]
        assert rows[row]['AA']['ours']['mean'] == 50.0


def test_seeds_are_averaged_with_their_spread(tmp_path):
    counts = {0: 270, 1: 260, 2: 274}
    for seed, count in counts.items():
        folder = write_run(tmp_path / f's{seed}', seed=seed)
        write_result(folder / 'evaluation' / 'a.json', DIGITS | {'pgd': count})
    _, rows = cells(tmp_path, seeds='0,1,2')
    ours = rows['TRADES']['PGD']['ours']
    values = np.array(list(counts.values())) / 3.97
    assert ours['by_seed'] == pytest.approx({str(s): c / 3.97 for s, c in counts.items()})
    assert ours['mean'] == pytest.approx(values.mean())
    assert ours['sd'] == pytest.approx(values.std(ddof=1))
    interval = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert ours['ci95'] == pytest.approx(list(interval))
    natural = rows['TRADES']['Natural']['ours']
    assert natural['sd'] == 0 and natural['ci95'] is None
    made, rows = cells(tmp_path, seeds='1')
    assert list(rows['TRADES']['PGD']['ours']['by_seed']) == ['1']
    assert 'TRADES: seeds 0, 2 are there too; --seeds shows them' in made['notes']


def test_a_seed_that_is_missing_is_named_and_not_averaged_away(tmp_path):
    folder = write_run(tmp_path / 'a')
    write_result(folder / 'evaluation' / 'a.json', DIGITS)
    second = write_run(tmp_path / 'b', seed=1)
    write_result(second / 'evaluation' / 'a.json', {'clean': 380, 'pgd': 268})
    made, rows = cells(tmp_path, seeds='0,1,2', rows='TRADES')
    assert rows['TRADES']['PGD']['missing_seeds'] == [2]
    assert rows['TRADES']['AA']['missing_seeds'] == [1, 2]
    evaluate = '--attacks=pgd,cw,dlr,sipgd,autoattack'
    assert made['missing'] == [
        f'python evaluate.py --workdir={second} {evaluate}',
        'python train.py --config=configs/digits.py:trades --config.seed=2 '
        f'--workdir={tmp_path}/digits-trades/seed2',
        f'python evaluate.py --workdir={tmp_path}/digits-trades/seed2 {evaluate}',
    ]
    text = report.run(table='digits', runs=str(tmp_path), seeds='0,1,2', rows='TRADES')
    assert '0,1 (missing 2)' in text and '0 (missing 1,2)' in text
    grid = report.run(table='digits', runs=str(tmp_path), seeds='0,1,2', rows='TRADES', markdown=True)
    assert ', 2 of 3 seeds' in grid and ', 1 of 3 seeds' in grid


def test_two_runs_of_the_same_seed_are_refused(tmp_path):
    for name in 'ab':
        folder = write_run(tmp_path / name)
        write_result(folder / 'evaluation' / 'a.json', DIGITS)
    error = refused(tmp_path)
    assert f'{tmp_path}/a and {tmp_path}/b are the same run, TRADES with seed 0' in error


def test_a_cell_that_is_measured_twice_is_named(tmp_path):
    folder = write_run(tmp_path / 'run')
    first = write_result(folder / 'evaluation' / 'a.json', DIGITS)
    second = write_result(folder / 'evaluation' / 'b.json', {'clean': 380, 'pgd': 270})
    made, rows = cells(tmp_path)
    assert rows['TRADES']['PGD']['ours']['mean'] == pytest.approx(27_000 / 397)
    assert f'PGD is measured more than once, alike: {first}, {second}' in made['notes']
    write_result(second, {'clean': 380, 'pgd': 269})
    error = refused(tmp_path)
    assert 'PGD of the same network and seed is measured twice, and not alike' in error
    assert f'{first} (0.6801) and {second} (0.6776)' in error


UNFIT = {
    'it is of the data set svhn (test), the table of digits (test)': {'dataset': 'svhn'},
    'its threat model is linf with eps 0.1, that of the table linf with eps 0.2': {'eps': 0.1},
    'it has 300 images, the table 397; --num_examples=300 shows it': {'images': 300},
    'its attacks have seed 3, those of the table 0': {'seed': 3},
    'it is of the checkpoint last, the table of best': {'model': {'checkpoint': 'last', 'step': 20}},
    'it is of step 10, which is no longer the best of the run': {'model': {'checkpoint': 'best', 'step': 10}},
}


@pytest.mark.parametrize('reason', UNFIT)
def test_a_result_that_does_not_fit_is_named_and_not_used(reason, tmp_path):
    folder = write_run(tmp_path / 'run')
    path = write_result(folder / 'evaluation' / 'a.json', dict.fromkeys(DIGITS, 200), **UNFIT[reason])
    made, rows = cells(tmp_path)
    assert rows['TRADES']['PGD']['ours'] is None
    assert f'{path} is not used: {reason}' in made['notes']
    # The run is there: only its evaluation is missing.
    (command,) = [line for line in made['missing'] if str(folder) in line]
    assert command.startswith(f'python evaluate.py --workdir={folder} ')


def test_a_part_of_the_images_and_the_last_checkpoint_are_shown_if_asked_for(tmp_path):
    folder = write_run(tmp_path / 'run')
    last = {'checkpoint': 'last', 'step': 20}
    write_result(folder / 'evaluation' / 'a.json', dict.fromkeys(DIGITS, 90), images=100, model=last)
    made, rows = cells(tmp_path, num_examples=100, checkpoint='last')
    assert rows['TRADES']['AA']['ours']['mean'] == 90.0
    assert '--checkpoint=last --attacks=pgd,cw,dlr,sipgd,autoattack --num_examples=100' in made['missing'][1]
    write_run(tmp_path / 'other', seed=1)
    write_result(tmp_path / 'other' / 'evaluation' / 'a.json', DIGITS, model=last | {'step': 10})
    made, _ = cells(tmp_path, seeds='1', checkpoint='last')
    assert any('it is of step 10, and the run went on to 20' in note for note in made['notes'])


def test_other_settings_of_an_attack_do_not_fill_its_cell(tmp_path):
    folder = write_run(tmp_path / 'run')
    write_result(folder / 'evaluation' / 'a.json', DIGITS, steps=50)
    write_result(folder / 'evaluation' / 'b.json', {'clean': 380, 'cw': 100},
                 model={'checkpoint': 'best', 'step': 20, 'logit_scale': 10.0})  # fmt: skip
    _, rows = cells(tmp_path)
    assert rows['TRADES']['PGD']['ours'] is None and rows['TRADES']['PGDCW']['ours'] is None
    assert rows['TRADES']['AA']['ours'] is not None and rows['TRADES']['Natural']['ours'] is not None


def test_the_first_of_several_restarts_is_a_single_run(tmp_path):
    folder = write_run(tmp_path / 'run')
    write_result(folder / 'evaluation' / 'a.json', DIGITS | {'pgd': [270, 260, 265]})
    _, rows = cells(tmp_path)
    assert rows['TRADES']['PGD']['ours']['mean'] == pytest.approx(27_000 / 397)


def test_a_run_that_is_not_at_its_end_is_named_and_not_used(tmp_path):
    folder = write_run(tmp_path / 'run', at=7)
    write_result(folder / 'evaluation' / 'a.json', DIGITS)
    made, rows = cells(tmp_path)
    assert rows['TRADES']['PGD']['ours'] is None
    assert f'{folder} is at epoch 7 of 40: it is not used before its end' in made['notes']
    assert f'python train.py --config=configs/digits.py:trades --workdir={folder}' in made['missing']


def test_another_recipe_is_named_and_shown_with_override(tmp_path):
    folder = write_run(tmp_path / 'run', SI, **{'epochs': 30, 'model.dtype': 'bfloat16'})
    write_result(folder / 'evaluation' / 'a.json', WHITE_BOX, images=10_000, dataset='cifar10', eps=8 / 255)
    made, rows = cells(tmp_path, '6')
    assert not any(row['PGD']['ours'] for row in rows.values())
    (note,) = [note for note in made['notes'] if 'another recipe' in note]
    assert note.startswith(f'{folder} is not used: it is ResNet18, CIFAR-10, TRADES-SI by another recipe')
    assert 'epochs: 120 -> 30' in note and "model.dtype: 'float32' -> 'bfloat16'" in note
    override = ['epochs=30', 'model.dtype=bfloat16']
    _, rows = cells(tmp_path, '6', override=override)
    assert rows['ResNet18, CIFAR-10, TRADES-SI']['PGD']['ours']['mean'] == pytest.approx(56.0)
    text = report.run(table='6', runs=str(tmp_path), override=override)
    assert "Not the paper's recipe: epochs=30, model.dtype=bfloat16." in text


def test_where_a_run_lies_and_where_its_data_lay_do_not_matter(tmp_path):
    changes = {'data.dir': 'elsewhere', 'logging.every_steps': 7, 'checkpoint.keep_last': 1,
               'evaluation.batch_size': 32}  # fmt: skip
    folder = write_run(tmp_path / 'a' / 'b' / 'c', **changes)
    write_result(folder / 'results' / 'a.json', DIGITS, warnings=['the clean accuracy is odd'])
    made, rows = cells(tmp_path)
    assert rows['TRADES']['PGD']['ours']['mean'] == pytest.approx(27_000 / 397)
    assert made['notes'][-1] == f'{folder}/results/a.json: the clean accuracy is odd'


def test_warnings_that_differ_in_figures_alone_are_told_once(tmp_path):
    for seed in (0, 1, 2):
        folder = write_run(tmp_path / f'seed{seed}', seed=seed)
        write_result(
            folder / 'results' / 'a.json', DIGITS, warnings=[f'odd on {seed + 3} of 397', f'w{seed == 1}']
        )
    made, _ = cells(tmp_path, seeds='0,1,2')
    assert sum('a.json: ' in note for note in made['notes']) == 6  # every one of them
    text = report.run(table='digits', runs=str(tmp_path), seeds='0,1,2', markdown=True)
    assert 'seed0/results/a.json: odd on 3 of 397. With figures of their own: seed1, seed2\n' in text
    assert text.count('odd on') == 1 and text.count('wTrue') == 1
    assert 'wFalse. With figures of their own: seed2\n' in text


@pytest.mark.parametrize('content', ['{"schema": 1, "att', '[' * 100_000, '\0'])
def test_a_damaged_result_is_refused(content, tmp_path):
    folder = write_run(tmp_path / 'run')
    (folder / 'evaluation').mkdir()
    (folder / 'evaluation' / 'a.json').write_text(content)
    assert f'{folder}/evaluation/a.json is damaged' in refused(tmp_path)


def test_another_schema_is_refused_and_other_files_are_left_alone(tmp_path):
    folder = write_run(tmp_path / 'run')
    (folder / 'environment.json').write_text('{"python": "3.12"}')
    (folder / 'numbers.json').write_text('[1, 2]')
    (folder / 'being-written.json').touch()
    (folder / 'checkpoints').mkdir()
    (folder / 'checkpoints' / 'half.json').write_text('{')
    (folder / 'a.partial').mkdir()
    (folder / 'a.partial' / 'identity.json').write_text('{')
    cells(tmp_path)
    path = write_result(folder / 'evaluation' / 'a.json', DIGITS, schema=7)
    assert f'{path} has schema 7, known is 1: evaluate again' in refused(tmp_path)


def test_table_8_has_autoattack_and_the_share_of_collapsed_seeds(tmp_path):
    source = Training('rfgsm_cifar10')
    held_out = {0: (0.4, 0.45), 1: (0.45, 0.1), 2: (0.4, 0.25)}
    for seed, pgd in held_out.items():
        folder = write_run(tmp_path / f'{seed}', source, pgd=pgd, seed=seed)
        best = {'checkpoint': 'best', 'step': 10 * (1 + int(np.argmax(pgd)))}
        write_result(folder / 'evaluation' / 'a.json', WHITE_BOX, images=10_000, dataset='cifar10',
                     eps=8 / 255, model=best)  # fmt: skip
    _, rows = cells(tmp_path, '8', seeds='0,1,2')
    row = rows['PARN-18, RFGSM-AT']
    assert row['AA']['paper'] is None and row['AA']['ours']['mean'] == 50.0
    collapsed = row['collapsed']
    assert collapsed['ours']['by_seed'] == {'0': 0.0, '1': 100.0, '2': 0.0}
    low, high = stats.binomtest(1, 3).proportion_ci(0.95, method='wilson')
    assert collapsed['ours']['ci95'] == pytest.approx([100 * low, 100 * high])
    assert collapsed['ours']['mean'] == pytest.approx(100 / 3) and collapsed['ours']['sd'] is None


def test_a_run_that_the_guard_ended_is_finished_and_collapsed(tmp_path):
    folder = write_run(tmp_path / 'run', Training('rfgsm_cifar10'), at=9, pgd=(0.4, 0.45),
                       pgd5=(0.5, 0.1))  # fmt: skip
    write_result(folder / 'evaluation' / 'a.json', WHITE_BOX, images=10_000, dataset='cifar10', eps=8 / 255)
    _, rows = cells(tmp_path, '8')
    assert rows['PARN-18, RFGSM-AT']['collapsed']['ours']['mean'] == 100.0
    assert rows['PARN-18, RFGSM-AT']['PGD']['ours']['mean'] == pytest.approx(56.0)


def test_table_9_has_the_average_distance_of_rays(tmp_path):
    folder = write_run(tmp_path / 'run', Training('alp_cifar10'))
    counts = {'clean': 840, 'spsa-128': 600, 'spsa': 590, 'spsa-512': 580, 'rays': 550}
    write_result(folder / 'evaluation' / 'a.json', counts, images=1000, dataset='cifar10', eps=8 / 255,
                 distance=0.0391)  # fmt: skip
    _, rows = cells(tmp_path, '9')
    row = rows['ALP']
    assert row['ADB']['unit'] == 'fraction of the pixel range'
    assert row['ADB']['ours']['mean'] == 0.0391 and row['ADB']['ours']['ci95'] is None
    assert row['ADB']['difference'] == pytest.approx(0.0391 - 0.0388)
    assert row['Rob.Acc']['ours']['mean'] == pytest.approx(55.0)
    assert '0.0391' in report.run(table='9', runs=str(tmp_path))


def test_table_5_has_single_runs_restarts_and_the_best_scale(tmp_path):
    model = {'torch_checkpoint': 'any/mart_resnet18.pt', 'arch': 'resnet18', 'variant': 'standard',
             'normalise': 'none', 'stated_clean': 0.8307}  # fmt: skip
    common = {'images': 10_000, 'dataset': 'cifar10', 'eps': 8 / 255}
    runs = {'pgd': [5_550, 5_540, 5_545, 5_535, 5_530], 'cw': 5_100, 'dlr': 5_300, 'sipgd': 5_120}
    write_result(tmp_path / 'a.json', runs | {'clean': 8_300}, restarts=5, model=model, **common)
    scales = [scale for scale in SCALES if scale != 1]
    for scale in scales[:-1]:
        write_result(tmp_path / f'{scale}.json', {'clean': 8_300, 'pgd': 5_600 + round(scale)},
                     model=model | {'logit_scale': scale}, **common)  # fmt: skip
    made, rows = cells(tmp_path, '5')
    row = rows['MART, RN-18']
    assert row['PGD']['ours']['mean'] == pytest.approx(55.5)
    assert row['PGD ×5']['ours']['mean'] == pytest.approx(55.3)
    assert row['PGDCW']['difference'] == pytest.approx(51.0 - 51.5)
    assert row['PGD at its best scale']['ours'] is None
    (missing,) = [line for line in made['missing'] if 'mart_resnet18' in line]
    assert '--attacks=pgd --logit_scale=1000 ' in missing
    write_result(tmp_path / 'last.json', {'clean': 8_300, 'pgd': 5_000},
                 model=model | {'logit_scale': 1000.0}, **common)  # fmt: skip
    _, rows = cells(tmp_path, '5')
    best = rows['MART, RN-18']['PGD at its best scale']
    assert best['ours']['mean'] == 50.0 and best['paper'] is None
    assert best['ours']['files'] == {'0': [f'{tmp_path}/last.json']}
    # The wide network of the same authors is another row.
    assert rows['MART †, W-28-10']['PGD']['ours'] is None


BAD_FLAGS = {
    'unknown table': ['--table=66'],
    'did you mean 10': ['--table=100'],
    'are not whole numbers': ['--seeds=0,a'],
    'seed 1 is given 2 times': ['--seeds=1,1'],
    'seeds=-1': ['--seeds=-1'],
    'is not of the form FIELD=VALUE': ['--override=epochs'],
    "override epoch=3 does not fit configs/": ['--override=epoch=3'],
    "override epochs='many' does not fit": ['--override=epochs=many'],
    'use --seeds': ['--override=seed=1'],
    'give it once': ['--override=epochs=3', '--override=epochs=4'],
    "unknown label of table 6 'TRADESSI'": ['--rows=TRADESSI'],
    'bears all of the labels': ['--rows=TRADES,TRADES-SI'],
    "unknown checkpoint 'lst'": ['--checkpoint=lst'],
    'num_examples=0': ['--num_examples=0'],
}  # fmt: skip


@pytest.mark.parametrize('reason', BAD_FLAGS)
def test_bad_flags_are_refused_with_the_reason(reason, tmp_path, capsys):
    flags = ['--table=6', f'--runs={tmp_path}', *BAD_FLAGS[reason]]
    assert program.main(flags) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('report.py: ') and reason in err


def test_a_folder_that_does_not_exist_is_said(tmp_path, capsys):
    assert program.main(['--table=7', f'--runs={tmp_path}/none', '--rows=AT']) == 0
    out, _ = capsys.readouterr()
    assert 'There is no folder' in out and out.count('missing') == 5
    assert program.main(['--table=7', '--runs=none', '--rows=AT', '--commands']) == 0
    assert capsys.readouterr().out == (
        'python train.py --config=configs/at_svhn.py --workdir=none/at_svhn/seed0\n'
        'python evaluate.py --workdir=none/at_svhn/seed0 --attacks=pgd,cw,sipgd,autoattack\n'
    )


def test_what_a_screen_left_and_a_stronger_attack_broke(monkeypatch):
    """On the images that both saw, the first of the screen's, of the seeds that both have."""
    flags = {
        'fast-0': {'fast': np.array([1, 1, 0, 1, 1, 1], bool)},
        'aa-0': {'autoattack': np.array([1, 0, 0, 1], bool)},
        'fast-1': {'fast': np.array([1, 0, 0, 0, 1, 1], bool)},
        'aa-1': {'autoattack': np.array([1, 0, 0, 0], bool)},
        'fast-2': {'fast': np.ones(6, bool)},
    }
    monkeypatch.setattr(paired.Result, 'load', lambda path: SimpleNamespace(correct=flags[path]))
    table = STUDIES['evidence']
    values = {'fast': {seed: Value(0.5, 6, (f'fast-{seed}',)) for seed in (0, 1, 2)}}
    values['AA'] = {seed: Value(0.5, 4, (f'aa-{seed}',)) for seed in (0, 1)}
    row = SimpleNamespace(
        row=table.rows[0], values=[values.get(column.title, {}) for column in table.columns]
    )
    (words,) = paired.left_by_screen(table, [row])
    assert words == (
        'Of the images that both saw, AA broke 1 of the 4 that fast left, 16.67 % as a mean over 2 networks. '
        'By rows: TRADES 1 of 4.'
    )
    row = SimpleNamespace(row=table.rows[0], values=[{} for _ in table.columns])
    assert paired.left_by_screen(table, [row]) == [] == paired.left_by_screen(STUDIES['digits'], [row])

"""Two results compared image by image: the statistics against independent ones, and what is refused."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from si_jax import InputError, Threat, compare
from si_jax.cli import evaluate
from si_jax.evaluation.compare import mcnemar
from si_jax.evaluation.result import AttackRecord, Result

COUNT = 120


def result(seed: int = 0, robust: float = 0.5, draw: int = 0, **changes) -> Result:
    rng = np.random.default_rng(draw)
    clean = rng.uniform(size=COUNT) < 0.9
    pgd, cw = (clean & (rng.uniform(size=(2, COUNT)) < robust) for _ in range(2))
    fields = {
        'clean': clean,
        'attacks': {'pgd': AttackRecord(pgd, 20, 0.05, 1, 0.2), 'cw': AttackRecord(cw, 20, 0.05, 1, 0.2)},
        'labels': np.arange(COUNT) % 3,
        'indices': np.arange(COUNT),
        'threat': Threat('linf', 0.2),
        'seed': seed,
        'precision': {'search': 'float32'},
        'dataset': {'name': 'digits', 'split': 'test', 'examples': COUNT, 'classes': 3, 'digest': 'a' * 64},
        'warnings': [],
        'environment': {},
        'timing': {},
    }
    return Result(**fields | changes)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, *args, **changes) -> str:
        result(*args, **changes).save(tmp_path / name)
        return name

    return write


def test_one_seed_against_computations_by_hand(write):
    a, b = result(draw=1, robust=0.5), result(draw=2, robust=0.7)
    a.save('a.json')
    b.save('b.json')
    comparison = compare('a.json', 'b.json')
    assert list(comparison.differences) == ['clean', 'pgd', 'cw', 'worst_case']
    assert comparison.images == COUNT and comparison.seeds == [0] and comparison.notes == []
    rng = np.random.default_rng(7)
    for name, one in comparison.differences.items():
        x, y = a.correct[name], b.correct[name]
        assert one.a[0] == a.accuracy[name] and one.b[0] == b.accuracy[name]
        first = sum(1 for p, q in zip(x, y, strict=True) if p and not q)
        second = sum(1 for p, q in zip(x, y, strict=True) if q and not p)
        assert (one.only_a[0], one.only_b[0]) == (first, second)
        assert first + second > 10
        # McNemar by hand: twice the tail of a fair coin.
        total, smaller = first + second, min(first, second)
        tail = sum(math.comb(total, k) for k in range(smaller + 1)) / 2**total
        assert one.mcnemar_p[0] == pytest.approx(min(1.0, 2 * tail), rel=1e-12)
        # The bootstrap, drawing images one by one. Quantiles of 4,000 draws are off by a step or two of 1/N.
        difference = y.astype(int) - x.astype(int)
        means = np.sort(difference[rng.integers(COUNT, size=(4000, COUNT))].mean(axis=1))
        assert one.ci95 == pytest.approx((means[100], means[3899]), abs=2.1 / COUNT)
        # And scipy's.
        other = stats.bootstrap((difference,), np.mean, n_resamples=9999, method='percentile', rng=rng)
        low, high = other.confidence_interval
        assert one.ci95 == pytest.approx((low, high), abs=2.1 / COUNT)
        # The spread is that of paired differences.
        half = 1.96 * difference.std() / COUNT**0.5
        assert one.ci95 == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.02)
        assert one.paired_t_p is None


def test_mcnemar_by_known_values():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == pytest.approx(1.0)
    assert mcnemar(0, 6) == mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 4096)


def test_over_seeds(write):
    a = [result(seed, 0.5, draw=seed) for seed in range(3)]
    b = [result(seed, 0.6, draw=10 + seed) for seed in range(3)]
    for seed in range(3):
        a[seed].save(f'a{seed}.json')
        b[seed].save(f'b{seed}.json')
    names = [','.join(f'{side}{seed}.json' for seed in range(3)) for side in 'ab']
    comparison = compare(*names)
    one = comparison.differences['pgd']
    x, y = (np.array([run.accuracy['pgd'] for run in side]) for side in (a, b))
    np.testing.assert_array_equal(one.a, x)
    assert one.paired_t_p == pytest.approx(stats.ttest_rel(y, x).pvalue)
    written = one.to_json()
    assert written['difference']['mean'] == pytest.approx((y - x).mean())
    assert written['difference']['sd'] == pytest.approx((y - x).std(ddof=1))
    assert written['a']['by_seed'] == x.tolist() and len(written['mcnemar_p']) == 3
    difference = np.mean(
        [q.correct['pgd'] * 1.0 - p.correct['pgd'] for p, q in zip(a, b, strict=True)], axis=0
    )
    half = 1.96 * difference.std() / COUNT**0.5
    assert one.ci95 == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.02)
    # A sequence of paths is the same, and so is the comparison when run again; another seed is not.
    again = compare(*(name.split(',') for name in names))
    assert again.to_json() == comparison.to_json()
    assert compare(*names, seed=1, resamples=50).differences['pgd'].ci95 != one.ci95
    table = comparison.table()
    assert max(map(len, table.splitlines())) <= 80
    assert 'linf, eps = 0.2, 120 images, seeds 0, 1, 2' in table
    assert '120 images, seed 0\n' in compare('a0.json', 'b0.json').table()
    # All differences equal: nothing to test over seeds.
    assert compare(names[0], names[0]).differences['pgd'].paired_t_p is None


def test_command(write, capsys):
    write('a.json', draw=1)
    write('b.json', draw=2, robust=0.7, warnings=['look out'], precision={'search': 'bfloat16'})
    assert evaluate.main(['compare', 'a.json', 'b.json', '--output=out/c.json']) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert 'McNemar p' in out and out.endswith('written to out/c.json\n')
    (row,) = (line.split() for line in out.splitlines() if line.startswith('pgd'))
    written = json.loads(Path('out/c.json').read_text())
    pgd = written['differences']['pgd']
    assert float(row[1]) == pytest.approx(100 * pgd['a']['mean'], abs=0.006)
    assert float(row[3]) == pytest.approx(100 * pgd['difference']['mean'], abs=0.006)
    assert [int(row[6]), int(row[7])] == [*pgd['only_a'], *pgd['only_b']]
    assert written['bootstrap'] == {'resamples': 10000, 'seed': 0, 'method': 'percentile'}
    assert len(written['notes']) == 2 and 'b.json carries warnings' in written['notes'][1]
    # Nor is it hidden that the images of an older result could not be compared.
    write('old.json', dataset={'name': 'digits', 'split': 'test', 'examples': COUNT, 'classes': 3})
    (note,) = compare('a.json', 'old.json').notes
    assert note.startswith('old.json came from an older version') and 'not checked' in note
    assert evaluate.main(['compare', 'a.json', 'b.json', '--output=a.json']) == 2
    assert 'one of the results compared' in capsys.readouterr().err
    assert evaluate.main(['compare', 'a.json', 'b.json', '--output=a.txt']) == 2
    assert json.loads(Path('a.json').read_text())['schema'] == 1


def attacks(**changes) -> dict:
    pgd = dataclasses.replace(result().attacks['pgd'], **changes)
    return {'attacks': result().attacks | {'pgd': pgd}}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'labels': np.arange(COUNT) % 4 % 3}, 'the labels differ, first in row 4: 1 and 0'),
        (
            {'indices': np.arange(COUNT) + (np.arange(COUNT) > 7)},
            'the images differ, first in row 8: 8 and 9',
        ),
        (
            {'dataset': result().dataset | {'digest': 'b' * 64}},
            r'the images differ, though .* equal \(SHA-256\): aaaaaaaaaaaa and bbbbbbbbbbbb; .*same pixels',
        ),
        ({'threat': Threat('linf', 0.1)}, 'eps differs: 0.2 and 0.1; evaluate both with the same --eps'),
        ({'threat': Threat('l2', 0.2)}, 'norm differs: linf and l2'),
        ({'dataset': result().dataset | {'name': 'svhn'}}, 'data sets differ .*digits and svhn'),
        ({'eight_bit': True}, 'only one was rounded to bytes: False and True; .*--eight_bit'),
        ({'seed': 1}, r'the seeds differ: \[0\] for a, \[1\] for b'),
        (attacks(steps=40), 'the protocols of pgd differ in steps: 20 and 40'),
        (attacks(step_size=0.1), 'the protocols of pgd differ in step_size'),
        (attacks(runs=np.ones((3, COUNT), bool)), 'the protocols of pgd differ in restarts: 2 and 3'),
        (attacks(protocol={'stages': ['apgd-ce']}), 'the protocols of pgd differ in protocol: None and'),
        ({'attacks': {'pgd': result().attacks['pgd']}}, 'the attacks differ: pgd,cw and pgd; .*--attacks'),
    ],
)
def test_results_that_were_not_measured_alike(write, changes, message):
    write('a.json')
    write('b.json', **changes)
    with pytest.raises(InputError, match=message):
        compare('a.json', 'b.json')


def test_another_number_of_images(write):
    write('a.json')
    half = result()
    dataclasses.replace(
        half,
        clean=half.clean[:60],
        attacks={name: dataclasses.replace(one, runs=one.runs[:, :60]) for name, one in half.attacks.items()},
        labels=half.labels[:60],
        indices=half.indices[:60],
        dataset=half.dataset | {'examples': 60},
    ).save('b.json')
    with pytest.raises(InputError, match='the numbers of images differ: 120 and 60; .*--num_examples'):
        compare('a.json', 'b.json')


def test_files_that_are_no_results(write, tmp_path, capsys):
    write('a.json')
    write('b.json', seed=1)
    for sides, message in (
        (('a.json,b.json', 'a.json'), r'seeds differ: \[0, 1\] for a, \[0\] for b'),
        (('a.json,./a.json', 'b.json'), 'a.json is given twice on one side'),
        (('a.json', 'none.json'), 'there is no file none.json'),
    ):
        with pytest.raises(InputError, match=message):
            compare(*sides)
    flags = (tmp_path / 'b.npz').read_bytes()
    (tmp_path / 'b.npz').unlink()
    with pytest.raises(InputError, match=r'no file b.npz: .*flags of each image beside it as .npz'):
        compare('a.json', 'b.json')
    # Cut off, with a byte flipped in the flags, or something else altogether.
    flipped = bytearray(flags)
    flipped[flags.index(b'NUMPY') + 150] ^= 1
    np.save(tmp_path / 'array.npy', np.arange(3))
    for content in (
        b'PK damaged',
        b'',
        flags[: len(flags) // 2],
        bytes(flipped),
        (tmp_path / 'array.npy').read_bytes(),
    ):
        (tmp_path / 'b.npz').write_bytes(content)
        with pytest.raises(InputError, match='b.npz does not hold the flags of b.json, or is damaged'):
            compare('a.json', 'b.json')
    whole = json.loads((tmp_path / 'b.json').read_text())
    comparison = {'schema': 1, 'a': ['x.json'], 'b': ['y.json'], 'differences': {}}
    for content, message in (
        (b'{', 'b.json is not JSON, or damaged'),
        (flags, 'b.json is not JSON, or damaged'),
        (b'[]', 'b.json is no result of evaluate.py: it has no schema'),
        (b'{"schema": 9}', 'b.json has schema 9, known is 1'),
        (json.dumps(comparison).encode(), "no result of evaluate.py .'dataset' is missing.*a comparison"),
        (json.dumps(whole | {'attacks': ['pgd']}).encode(), 'b.json is JSON, but no result'),
        (json.dumps(whole | {'clean': {}}).encode(), "'accuracy' is missing"),
        (json.dumps(whole | {'warnings': 1}).encode(), "no result of evaluate.py .warnings is '1'"),
    ):
        (tmp_path / 'b.json').write_bytes(content)
        with pytest.raises(InputError, match=message):
            compare('a.json', 'b.json')
    (tmp_path / 'b.json').unlink()
    (tmp_path / 'b.json').mkdir()
    with pytest.raises(InputError, match='b.json cannot be read .*directory'):
        compare('a.json', 'b.json')
    (tmp_path / 'b.json').rmdir()
    # Flags of more images than the JSON speaks of.
    write('b.json', dataset=result().dataset | {'examples': COUNT - 1})
    with pytest.raises(InputError, match=r"'labels' in b.npz is int64 \(120,\), where b.json .* 119 images"):
        compare('a.json', 'b.json')
    # The flags of another evaluation beside the JSON.
    write('b.json', draw=5)
    (tmp_path / 'a.npz').rename(tmp_path / 'b.npz')
    write('a.json')
    with pytest.raises(InputError, match='in b.npz does not belong to the accuracy in b.json'):
        compare('a.json', 'b.json')
    assert evaluate.main(['compare', 'a.json', 'b.json']) == 2
    assert capsys.readouterr().err.startswith('evaluate.py: ')


def test_the_sentence_says_who_is_better_by_how_much_and_how_likely_by_luck(write):
    write('a.json', draw=1, robust=0.5)
    write('b.json', draw=2, robust=0.7)
    one = compare('a.json', 'b.json', names=('AT', 'AT-SI'))
    worst = one.differences['worst_case']
    points, low, high = (f'{round(100 * x):g}' for x in (worst.b[0] - worst.a[0], *worst.ci95))
    p = f'{100 * worst.mcnemar_p[0]:.2g} %' if worst.mcnemar_p[0] >= 1e-4 else 'below 0.01 %'
    assert low != '0' and worst.ci95[0] > 0 and one.headline == 'worst_case'
    assert one.sentence == (
        f'AT-SI is more robust than AT by {points} points, between {low} and {high}; such a difference by '
        f'luck: {p}.'
    )
    # Turned around it is the same sentence; of a network and itself it says so.
    turned = compare('b.json', 'a.json', names=('AT-SI', 'AT'))
    assert turned.sentence.partition(' points')[0] == one.sentence.partition(' points')[0]
    assert 'no image of 120 tells them apart' in compare('a.json', 'a.json').sentence
    write('c.json', draw=3, robust=0.52)
    assert compare('a.json', 'c.json').sentence.startswith('Neither is shown to be more robust: b less a is ')
    assert one.to_json()['sentence'] == one.sentence and one.to_json()['names'] == ['AT', 'AT-SI']
    with pytest.raises(InputError, match='two that differ'):
        compare('a.json', 'b.json', names=('x', 'x'))


def test_two_attacks_on_one_network(write, capsys):
    first = result(draw=1)
    weak, strong = first.correct['pgd'], first.correct['pgd'] & (np.arange(COUNT) % 4 > 0)
    attacks = {'pgd': weak, 'autoattack': strong}
    records = {name: AttackRecord(flags[None], 20, 0.05, 1, 0.2) for name, flags in attacks.items()}
    write('a.json', draw=1, attacks=records)
    assert evaluate.main(['compare', 'a.json', '--attacks=pgd,autoattack', '--page=page']) == 0
    out = capsys.readouterr().out
    one = compare('a.json', 'a.json', attacks=('pgd', 'autoattack'))
    assert list(one.differences) == ['clean', 'pgd | autoattack'] and one.names == ('pgd', 'autoattack')
    pair = one.differences['pgd | autoattack']
    assert pair.only_a[0] == (weak & ~strong).sum() > 5 and pair.only_b[0] == 0
    assert one.sentence.startswith('autoattack is the stronger attack: it leaves ')
    assert one.sentence in ' '.join(out.split()) and out.endswith('written to page/index.html\n')
    page = Path('page/index.html').read_text()
    assert one.sentence in page and f'value="{pair.a[0]}"' in page and '://' not in page
    assert evaluate.main(['compare', 'a.json', '--attacks=pgd']) == 2
    assert 'give two, with a comma between' in capsys.readouterr().err
    assert evaluate.main(['compare', 'a.json']) == 2
    assert 'give B.json too' in capsys.readouterr().err
    with pytest.raises(InputError, match="has no attack 'cw', only pgd, autoattack"):
        compare('a.json', 'a.json', attacks=('pgd', 'cw'))
    write('b.json', draw=2, attacks=records)
    with pytest.raises(InputError, match='are of two networks'):
        compare('a.json', 'b.json', attacks=('pgd', 'autoattack'))


def test_the_sentence_on_random_classifiers_goes_by_their_shares(write):
    """Votes alike and shares apart: McNemar's test is of the votes, and has no word in it."""
    decided = {'decisions': 64, 'clean': np.ones(COUNT, bool)}
    for name, share in (('a.json', 0.95), ('b.json', 0.61)):
        flags = np.ones((1, COUNT), bool)
        record = AttackRecord(flags, 20, 0.05, 20, 0.2, shares=np.full((1, COUNT), share))
        write(name, attacks={'pgd': record}, clean_share=np.ones(COUNT), **decided)
    found = compare('a.json', 'b.json')
    assert found.by_draws and found.sentence.startswith('a is more robust than b by 34 points')
    assert 'by luck' not in found.sentence

"""The report page: its numbers are those of the files, nothing in a file reaches the page as HTML, and what
cannot be shown is named."""

import base64
import contextlib
import html.parser
import io
import itertools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from scipy import stats

import si_jax
from si_jax import data, load_model
from si_jax import reports as page
from si_jax.cli import report
from si_jax.reports import charts, gallery
from si_jax.reports.collect import collect
from si_jax.training.metrics import MetricsWriter
from tests.helpers.browser import look
from tests.helpers.folders import write_result, write_run
from tests.zoo.test_load import make_workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDY = ROOT / 'results' / 'study-digits'
EVIL = '</style></title><script>alert(1)</script><img src=x onerror=alert(2)>"\'&'
COUNT = 30


class Reader(html.parser.HTMLParser):
    """Tables by caption, each a list of rows of cells (text, numbers); images as (alt, source); headings."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.images, self.headings, self.tags, self.ids = {}, [], [], [], []
        self._caption = self._cell = self._heading = None
        self._rows = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.ids += [found['id']] if 'id' in found else []
        if tag == 'table':
            self._rows, self._caption = [], ''
        elif tag == 'tr':
            self._rows.append([])
        elif tag in ('td', 'th'):
            self._cell = ['', []]
        elif tag == 'data':
            self._cell[1].append(float(found['value']))
        elif tag == 'img':
            self.images.append((found['alt'], found['src']))
        elif tag in ('h1', 'h2', 'h3', 'h4'):
            self._heading = ''

    def handle_endtag(self, tag):
        if tag == 'table':
            self.tables[self._caption.strip()] = self._rows
            self._caption = None
        elif tag in ('td', 'th'):
            self._rows[-1].append((' '.join(self._cell[0].split()), self._cell[1]))
            self._cell = None
        elif tag in ('h1', 'h2', 'h3', 'h4'):
            self.headings.append((int(tag[1]), self._heading.strip()))
            self._heading = None

    def handle_data(self, text):
        if self._cell is not None:
            self._cell[0] += text
        elif self._caption is not None:
            self._caption += text
        if self._heading is not None:
            self._heading += text


def made(out, *places, gallery=0, **options):
    path, problems = page.write([str(place) for place in places], str(out), gallery=gallery, **options)
    text = path.read_text()
    assert path.stat().st_size < 5_000_000
    return Reader(text), text, problems


def table(reader, beginning):
    [found] = [rows for caption, rows in reader.tables.items() if caption.startswith(beginning)]
    return found


def numbers(entry):
    return [entry['accuracy'], *entry['ci95']]


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """The page of two committed runs with AutoAttack, and their results."""
    runs = [STUDY / 'digits-at' / 'seed0', STUDY / 'digits-atsi' / 'seed0']
    found = made(tmp_path_factory.mktemp('study'), *runs)
    paths = [next((run / 'evaluation').glob('*.json')) for run in runs]
    return found, paths, [json.loads(path.read_text()) for path in paths], runs


def test_the_numbers_are_those_of_the_results(study):
    (reader, text, problems), _, results, _ = study
    assert not problems
    rows = {row[0][0]: row[1:] for row in table(reader, 'Accuracy in % with 95 % interval')}
    heads = [f'{name} best checkpoint, step {result["model"]["step"]}'
             for name, result in zip(('AT', 'AT-SI'), results, strict=True)]  # fmt: skip
    assert [name for name, _ in rows['attack']] == heads
    wanted = {'natural': 'clean', 'worst case of 5 attacks: pgd, cw, dlr, sipgd, autoattack': 'worst_case'}
    wanted |= {f'{name} 20 steps': name for name in ('pgd', 'cw', 'dlr', 'sipgd')} | {
        'autoattack': 'autoattack'
    }
    assert rows.keys() == {'attack', *wanted}
    for title, name in wanted.items():
        for (shown, exact), result in zip(rows[title], results, strict=True):
            entry = result['attacks'].get(name) or result[name]
            assert exact == numbers(entry)
            value, low, high = (f'{100 * number:.1f}' for number in exact)
            assert shown == f'{value} [{low}, {high}]'
            # The chart tells the same.
            assert f'{value} % [{low}, {high}]' in text
    for result in results:
        assert f'<strong>{100 * result["worst_case"]["accuracy"]:.1f} %</strong>' in text


def test_each_evaluation_is_there_with_its_stages_and_protocol(study):
    (reader, text, _), paths, results, _ = study
    for path, result in zip(paths, results, strict=True):
        rows = {row[0][0]: row[1:] for row in table(reader, f'Attacks of {path}')}
        for name, entry in result['attacks'].items():
            settings, accuracy, single, only, largest = rows[name]
            assert accuracy[1] == numbers(entry) and single[1] == [entry['single_run']]
            assert (settings[0] == '20 steps') == (name != 'autoattack')
            assert only[0] == str(entry['only']) and float(largest[0]) == pytest.approx(0.2)
        for stage in result['attacks']['autoattack']['stages']:
            broke, accuracy, *_ = rows[stage['attack']]
            assert accuracy[1] == [stage['accuracy']]
            assert broke[0] == f'broke {stage["broken"]} of {stage["attacked"]} images'
        assert f'{result["overestimation_gap"]:.4g} points' in text
    assert 'Linf, eps = 0.2 (51/255)' in text and 'verification float32' in text
    assert results[0]['environment']['git_commit'] in text
    assert 'python evaluate.py --workdir=runs/study-digits/digits-at/seed0' in text


def test_accuracy_by_class_is_that_of_the_flags(study):
    (reader, _, _), paths, _, _ = study
    rows = table(reader, 'Accuracy in % by class')[2:]
    for i, path in enumerate(paths):
        with np.load(path.with_suffix('.npz')) as flags:
            for label, row in enumerate(rows):
                mine = flags['labels'] == label
                count, total = int(flags['worst_case'][mine].sum()), int(mine.sum())
                assert row[0][0] == str(label) and row[1][0] == str(total)
                assert row[2 + 2 * i][1] == [flags['clean'][mine].mean()]
                interval = stats.binomtest(count, total).proportion_ci(0.95, method='wilson')
                assert_allclose(row[3 + 2 * i][1], [count / total, interval.low, interval.high])
    assert len(rows) == 10


def test_the_training_is_that_of_metrics_jsonl_and_the_configs_are_told_apart(study):
    (reader, text, _), _, _, runs = study
    rows = table(reader, 'Metrics of AT by epoch')
    lines = [json.loads(line) for line in (runs[0] / 'metrics.jsonl').read_text().splitlines()]
    column = [name for name, _ in rows[0]].index('accuracy under PGD, held-out images')
    assert [float(row[column][0]) for row in rows[1:]] == [line['validation/pgd_accuracy'] for line in lines]
    last = lines[-1]['validation/pgd_accuracy']
    assert (
        f'AT: {100 * lines[0]["validation/pgd_accuracy"]:.1f} % at epoch 1, {100 * last:.1f} % at epoch 40'
        in text
    )
    differing = {
        row[0][0]: [cell[0] for cell in row[1:]] for row in table(reader, 'Fields of the config in which')
    }
    assert (
        differing['defense.si'] == ['False', 'True'] and 'seed' not in differing and 'epochs' not in differing
    )
    assert dict((row[0][0], row[1][0]) for row in table(reader, 'All fields'))['schedule.peak'] == '0.03'


def test_many_networks_stand_below_each_other(tmp_path):
    runs = [STUDY / f'digits-{name}' / 'seed0' for name in ('alp', 'alpsi', 'at', 'atsi', 'mart')]
    reader, text, problems = made(tmp_path, *runs)
    assert not problems and text.count('<details class="short">') == 5
    head, *rows = table(reader, 'Accuracy in % with 95 % interval')
    assert [name for name, _ in head[:3]] == ['network', 'natural', 'pgd 20 steps'] and len(rows) == 5
    by_class = table(reader, 'Accuracy in % by class')[1:]
    differing = table(reader, 'Fields of the config in which')
    for i, run in enumerate(runs):
        [path] = (run / 'evaluation').glob('*.json')
        result = json.loads(path.read_text())
        entries = [result['clean'], *result['attacks'].values(), result['worst_case']]
        assert [cell[1] for cell in rows[i][1:]] == [numbers(entry) for entry in entries]
        with np.load(path.with_suffix('.npz')) as flags:
            shares = [flags['worst_case'][flags['labels'] == label].mean() for label in range(10)]
        assert [cell[1][0] for cell in by_class[i][1:]] == shares
        config = json.loads((run / 'config.json').read_text())
        column = [row[0][0] for row in differing].index('defense.name')
        assert differing[column][1 + i][0] == config['defense']['name']


def test_headings_go_down_one_level_at_a_time_and_ids_are_unique(study):
    (reader, text, _), _, _, _ = study
    levels = [level for level, _ in reader.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert len(set(reader.ids)) == len(reader.ids)
    assert '<html lang="en">' in text and reader.tags.count('caption') == reader.tags.count('table')
    assert 'script' not in reader.tags and 'link' in reader.tags


# With a checkpoint


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run with a checkpoint and a result with adversarial images; names and warnings are HTML."""
    folder = tmp_path_factory.mktemp('page') / 'a run <b> & "more"'
    make_workdir(folder, 'small_cnn', width=2, seeds=(0,), metrics=(0.5,))
    with contextlib.closing(MetricsWriter(folder, tensorboard=False)) as writer:
        for epoch in (1, 2, 3):
            values = {'train/loss': float('nan') if epoch == 2 else 1 / epoch, 'learning_rate': 10.0**-epoch}
            writer.write(epoch, epoch, values | {'validation/pgd_accuracy': epoch / 10})
    test = data.load('digits', 'test')
    images = np.asarray(test.images[:COUNT] / 16, np.float32)
    model = load_model(folder)
    result = si_jax.evaluate(
        model, images, test.labels[:COUNT], attacks='pgd', eps=0.2, steps=3, return_images=True,
        devices=jax.local_devices()[:1],
    )  # fmt: skip
    path = folder / 'evaluation' / 'a.json'
    result.save(path)
    about = json.loads(path.read_text())
    about['dataset'] |= {'name': 'digits', 'split': 'test'}
    about['model'] = {'workdir': str(folder), 'checkpoint': 'best', 'step': 1}
    about['warnings'] = [EVIL]
    about['environment']['command'] = ['python', EVIL]
    path.write_text(json.dumps(about))
    config = json.loads((folder / 'config.json').read_text())
    config['defense']['name'], config['model']['note'] = EVIL, EVIL
    (folder / 'config.json').write_text(json.dumps(config))
    return folder, result


@pytest.fixture(scope='module')
def shown(run, tmp_path_factory):
    return made(tmp_path_factory.mktemp('shown'), run[0], gallery=12)


def test_the_page_is_sound_in_a_browser(shown, tmp_path):
    reader, text, problems = shown
    (tmp_path / 'index.html').write_text(text)
    seen = look(tmp_path / 'index.html')
    assert not seen.console and not seen.requests and not problems
    assert len(seen.images) == len(reader.images) == 36 and set(seen.images) == {8}
    assert max(seen.overflow.values()) <= 0
    assert seen.violations == []
    assert seen.reachable == ['Skip to the results', '3 warnings', 'digits']
    assert seen.printed > 0


def test_the_browser_check_sees_faults(tmp_path):
    path = tmp_path / 'bad.html'
    path.write_text(
        '<title>x</title><img src="none.png"><p style="width:2000px;color:#ccc">faint</p>'
        '<script>throw 1</script>'
    )
    seen = look(path)
    assert seen.console and seen.requests and seen.images == [0] and seen.overflow[360] > 1000
    assert any('image-alt' in one for one in seen.violations)
    assert any('color-contrast' in one for one in seen.violations)


def test_nothing_in_a_file_reaches_the_page_as_html(shown):
    reader, text, _ = shown
    assert EVIL not in text and '<script' not in text and '<img src=x' not in text
    assert 'script' not in reader.tags and text.count('</style>') == 1
    # But all of it is shown.
    escaped = text.count('&lt;script&gt;alert(1)&lt;/script&gt;')
    assert escaped >= 4
    assert 'a run &lt;b&gt; &amp; ' in text


def test_the_gallery_shows_the_saved_images_and_what_the_network_says(run, shown):
    folder, result = run
    [network] = collect([str(folder)]).networks
    problems = []
    [found] = gallery.galleries([network], 'digits', 12, None, problems)
    assert not problems and 'saved with' in found.source and 'pgd (3 steps)' in found.source
    labels = result.labels
    firsts = [int(np.argmax(labels == label)) for label in range(10)]
    others = [i for i in range(COUNT) if i not in firsts][:2]
    assert [shot.image for shot in found.shots] == firsts + others
    assert found.factor == 2.5  # 0.5 / eps: the largest perturbation is black or white
    model, adversarial = load_model(folder, 1), result.images['pgd']
    for shot in found.shots:
        clean = np.asarray(data.load('digits', 'test').images[shot.image] / 16, np.float32)
        attacked = adversarial[shot.image]
        for uri, image in (
            (shot.clean, clean), (shot.adversarial, attacked),
            (shot.perturbation, 0.5 + 2.5 * (attacked - clean)),
        ):  # fmt: skip
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))))
            assert pixels.shape == (8, 8)
            assert_allclose(pixels / 255, np.clip(image[..., 0], 0, 1), atol=0.5 / 255 + 1e-6)
        for said, image in ((shot.before, clean), (shot.after, attacked)):
            shares = np.asarray(jax.nn.softmax(model(image[None]).logits[0]))
            assert said.label == str(shares.argmax()) and said.confidence == pytest.approx(
                shares.max(), abs=1e-5
            )
        assert shot.held == result.correct['pgd'][shot.image] == shot.after.right
    reader, _, _ = shown
    alts = [alt for alt, _ in reader.images]
    first = found.shots[0]
    assert alts[0] == (
        f'Image {first.image}, class {first.label}, before the attack: the network says '
        f'{first.before.label} with {100 * first.before.confidence:.1f} %'
    )
    assert alts[2] == 'What the attack added, 2.5 times: at most 0.2 in a pixel'


def test_nan_and_an_unfinished_run_are_warnings(shown):
    _, text, _ = shown
    assert 'train/loss not finite, first after epoch 2' in text
    assert 'has not come to its end, epoch 3 of 40: go on with its training command' in text
    assert '3 warnings</a> on these runs' in text


def test_without_saved_images_pgd_makes_them_from_the_checkpoint(run, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(run[0], folder, ignore=shutil.ignore_patterns('evaluation'))
    [network] = collect([str(folder)]).networks
    problems = []
    [found] = gallery.galleries([network], 'digits', 3, None, problems)
    assert not problems and len(found.shots) == 3
    assert found.source.startswith(
        'adversarial images of pgd (20 steps, Linf, eps = 0.2), made for this page'
    )
    assert 'checkpoint of step 1' in found.source
    assert all(0.19 < shot.size <= 0.2 + 1e-6 and shot.held == shot.after.right for shot in found.shots)


# Bad input


def refused(capsys, *flags):
    assert report.main(list(flags)) == 2
    return capsys.readouterr().err


def test_an_empty_folder_a_missing_one_and_a_wrong_flag_are_refused(tmp_path, capsys):
    out = f'--out={tmp_path / "out"}'
    (tmp_path / 'empty').mkdir()
    error = refused(capsys, f'--workdirs={tmp_path / "empty"},{tmp_path / "none"}', out)
    assert 'nothing can be shown' in error and 'holds neither a run of train.py' in error
    assert f'There is no folder {tmp_path / "none"}' in error
    assert f'python train.py --config=configs/quickstart.py --workdir={tmp_path / "empty"}' in error
    write_run(tmp_path / 'run')
    (tmp_path / 'file').write_text('')
    assert 'is a file' in refused(capsys, f'--workdirs={tmp_path / "run"}', f'--out={tmp_path / "file"}')
    assert 'gallery=-1' in refused(capsys, f'--workdirs={tmp_path / "run"}', out, '--gallery=-1')
    assert not (tmp_path / 'out').exists()


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path, capsys):
    run = write_run(tmp_path / 'run', pgd=(0.4, 0.5))
    write_result(run / 'evaluation' / 'good.json', {'clean': 380, 'pgd': 270})
    (run / 'evaluation' / 'broken.json').write_text('{"attacks": ')
    write_result(run / 'evaluation' / 'older.json', {'clean': 380, 'pgd': 1}, schema=0)
    lacking = json.loads(
        write_result(run / 'evaluation' / 'lacking.json', {'clean': 380, 'pgd': 2}).read_text()
    )
    del lacking['attacks']['pgd']['ci95']
    (run / 'evaluation' / 'lacking.json').write_text(json.dumps(lacking))
    with (run / 'metrics.jsonl').open('a') as file:
        file.write(
            '{"step": 30, "epoch": 40, "validation/pgd_accuracy": ["<b>"], "train/loss": "low"}\n{"step": '
        )
    (tmp_path / 'strange').mkdir()
    (tmp_path / 'strange' / 'config.json').write_text('{"data": {}, "defense": {}, "epochs": 3}')
    flags = (f'--workdirs={run},{tmp_path / "strange"}', f'--out={tmp_path / "out"}', '--gallery=0')
    assert report.main(list(flags)) == 0
    printed = capsys.readouterr()
    text = (tmp_path / 'out' / 'index.html').read_text()
    for name, words in (
        ('broken.json', 'is damaged'), ('older.json', 'has schema 0, known is 1'), ('lacking.json', '(ci95)'),
        ('strange/config.json', 'lacks data.name'), ('good.npz', 'is missing'),
    ):  # fmt: skip
        [line] = [line for line in printed.err.splitlines() if name in line]
        assert words in line
        assert name in text and words in text.replace('&#39;', "'")
    rows = {row[0][0]: row[1:] for row in table(Reader(text), 'Accuracy in %')}
    assert rows['pgd 20 steps'][0][1][0] == 270 / 397
    assert 'strange' not in [name for name, _ in rows['attack']]
    assert f'written to {tmp_path / "out" / "index.html"}' in printed.out


def test_a_run_without_evaluations_names_the_command(tmp_path):
    run = write_run(tmp_path / 'run')
    reader, text, _ = made(tmp_path / 'out', run)
    assert 'Nothing was evaluated here yet' in text and 'TRADES was not evaluated' in text
    assert f'python evaluate.py --workdir={run} --attacks=pgd,cw,dlr,sipgd --save_images' in text
    assert table(reader, 'Metrics of TRADES')[1][0][0] == '39'


def test_data_sets_and_threat_models_stand_apart(tmp_path):
    first, other = write_run(tmp_path / 'a'), write_run(tmp_path / 'b', **{'data.name': 'cifar10'})
    write_result(first / 'evaluation' / 'a.json', {'clean': 380, 'pgd': 270})
    write_result(first / 'evaluation' / 'b.json', {'clean': 380, 'pgd': 300}, eps=0.1)
    write_result(
        other / 'evaluation' / 'a.json', {'clean': 9_000, 'pgd': 5_000}, images=10_000, dataset='cifar10'
    )
    reader, _, _ = made(tmp_path / 'out', tmp_path)
    parts = [heading for level, heading in reader.headings if level == 2]
    assert parts[:2] == ['digits', 'cifar10']
    compared = {
        caption: rows for caption, rows in reader.tables.items() if caption.startswith('Accuracy in % with')
    }
    assert len(compared) == 3 and all(len(rows[0]) == 2 for rows in compared.values())
    assert not [caption for caption in reader.tables if caption.startswith('Fields of the config in which')]


def test_results_of_one_network_share_a_column_unless_they_contradict(tmp_path):
    run = write_run(tmp_path / 'a')
    for name, counts, options in (
        ('a', {'clean': 380, 'pgd': 270}, {}),
        ('b', {'clean': 380, 'cw': 260}, {}),
        ('c', {'clean': 380, 'pgd': 250}, {'restarts': 5}),
        ('d', {'clean': 380, 'pgd': 271}, {}),
    ):
        write_result(run / 'evaluation' / f'{name}.json', counts, **options)
    reader, _, _ = made(tmp_path / 'out', run)
    rows = {row[0][0]: [cell[1][:1] for cell in row[1:]] for row in table(reader, 'Accuracy in % with')}
    assert rows['pgd 20 steps'] == [[270 / 397], [271 / 397]]
    assert rows['cw 20 steps'] == [[260 / 397], []]
    assert rows['pgd 20 steps, 5 restarts'] == [[250 / 397], []]


def test_a_result_of_an_own_model_needs_no_run(tmp_path):
    path = write_result(tmp_path / 'mine.json', {'clean': 380, 'pgd': 270}, model={'model': 'mine.py:build'})
    reader, text, _ = made(tmp_path / 'out', path)
    assert table(reader, 'Accuracy in % with')[0][1][0] == 'mine.py:build'
    assert 'What was run' not in text


def test_images_of_another_size_or_another_data_set_are_named(run, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(run[0], folder)
    shutil.rmtree(folder / 'checkpoints')
    path = folder / 'evaluation' / 'a.json'
    np.savez(folder / 'evaluation' / 'a_images.npz', pgd=np.zeros((COUNT, 9, 9, 1), np.float32))
    _, text, problems = made(tmp_path / 'out', folder, gallery=2)
    assert any('cannot be loaded (no checkpoint of step 1 in' in problem for problem in problems), problems
    assert any(
        f'are ({COUNT}, 9, 9, 1), the data set has ({COUNT}, 8, 8, 1)' in problem for problem in problems
    )
    assert 'evaluate again with --save_images' in text and 'Images before and after' not in text
    (folder / 'evaluation' / 'a_images.npz').write_bytes(b'PK\x03\x04 cut short')
    assert any(
        'a_images.npz is not shown' in problem for problem in made(tmp_path / 'out', folder, gallery=2)[2]
    )
    about = json.loads(path.read_text())
    about['dataset']['digest'] = 'f' * 64
    path.write_text(json.dumps(about))
    [problem] = [problem for problem in made(tmp_path / 'out', folder, gallery=2)[2] if 'a_images' in problem]
    assert 'other images than the data set here has' in problem and '--data_dir' in problem


def test_without_a_checkpoint_the_saved_images_are_shown(run, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(run[0], folder, ignore=shutil.ignore_patterns('checkpoints'))
    reader, text, problems = made(tmp_path / 'out', folder, gallery=2)
    assert len(reader.images) == 6 and len(problems) == 1
    held = int(run[1].correct['pgd'][[int(np.argmax(run[1].labels == label)) for label in (0, 1)]].sum())
    assert text.count('✓ holds') == held and text.count('✗ fooled') == 2 - held


def test_a_figure_of_these_runs_is_shown_with_its_numbers(tmp_path):
    run = write_run(tmp_path / 'run')
    numbers = json.loads((ROOT / 'results' / 'figures' / 'figure1.json').read_text())
    for name, workdir in (('figure1', str(run)), ('figure5', 'another')):
        numbers['models'][0]['workdir'] = workdir
        (tmp_path / 'figures').mkdir(exist_ok=True)
        (tmp_path / 'figures' / f'{name}.json').write_text(json.dumps(numbers))
        shutil.copy(ROOT / 'results' / 'figures' / 'figure1.png', tmp_path / 'figures' / f'{name}.png')
    audit = ROOT / 'results' / 'audits' / 'loud.json'
    (run / 'evaluation').mkdir()
    shutil.copy(audit, run / 'evaluation' / 'audit.json')
    shutil.copy(ROOT / 'docs' / 'audit_loud.png', run / 'evaluation' / 'audit.png')
    reader, _, _ = made(tmp_path / 'out', run, figures=str(tmp_path / 'figures'))
    [(about_audit, _), (about_figure, source)] = reader.images
    assert source.startswith('data:image/png;base64,')
    curve = numbers['curves'][0]
    assert (
        f'best pgd factor {curve["best_pgd"]["factor"]:.4g} accuracy {curve["best_pgd"]["accuracy"]:.4g}'
        in about_figure
    )
    assert 'Audit of pgd: fail.' in about_audit and 'Accuracy 60.5 % clean, 57.5 % under pgd.' in about_audit
    rows = {row[0][0]: [cell[0] for cell in row[1:]] for row in table(reader, 'Checks of')}
    assert rows['gradients'][0] == 'fail' and 'exactly zero' in rows['gradients'][1]


def test_a_curve_has_gaps_and_keeps_its_ends_when_it_is_thinned():
    points = [(float(i), None if i == 1 else 0.1 * i) for i in range(4)]
    drawn = charts.curves(charts.Ids(), 'x', [charts.Series(0, 'a', points)], share=False)
    assert drawn.count('M') - drawn.count('M-4') >= 3 and '0 at epoch 0, 0.3 at epoch 3' in drawn
    long = [(float(i), float(i)) for i in range(10_001)]
    drawn = charts.curves(charts.Ids(), 'x', [charts.Series(0, 'a', long)], share=False)
    assert len(drawn) < 10_000 and '0 at epoch 0, 1e+04 at epoch 10000' in drawn

"""The figures: their numbers against independent computations, their files, and what they refuse."""

import contextlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import si_jax
from si_jax import InputError, Threat, data, defenses, load_model
from si_jax.cli import figures as command
from si_jax.cli import report
from si_jax.paper import figures
from si_jax.paper.figures import (
    FIGURES,
    cosine_histogram,
    inputs,
    logit_scale,
    loss_surface,
    toy,
    weight_surface,
)
from si_jax.training.metrics import MetricsWriter
from tests.zoo.test_load import make_workdir

COUNT, STEPS = 24, 3


def edit_config(path, **fields):
    config = json.loads((path / 'config.json').read_text())
    for name, value in fields.items():
        section = config
        *sections, last = name.split('__')
        for part in sections:
            section = section[part]
        section[last] = value
    (path / 'config.json').write_text(json.dumps(config))


def write_metrics(path, offset=0.0, epochs=(1, 2, 3)):
    names = ('weight_norm', 'feature_norm', 'median_gap', 'true_cosine')
    names = (*names, 'natural_accuracy', 'calibrated_pgd_accuracy')
    with contextlib.closing(MetricsWriter(path, tensorboard=False)) as writer:
        for epoch in epochs:
            values = {f'validation/{name}': i + epoch / 10 + offset for i, name in enumerate(names)}
            writer.write(10 * epoch, epoch, {'train/loss': 1.0} | values)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Runs `si` and `plain`, which differ in their defense, and `si1`, `si` with another seed."""
    folder = tmp_path_factory.mktemp('figures')
    for name, seed in (('si', 0), ('plain', 1), ('si1', 2)):
        make_workdir(folder / name, 'small_cnn', width=2, seeds=(seed,), metrics=(0.5,))
        write_metrics(folder / name, offset=seed)
    edit_config(folder / 'plain', defense__si=False, defense__weights={'natural_ce': 1.0, 'kl': 6.0})
    edit_config(folder / 'si1', seed=1)
    return folder


@pytest.fixture(scope='module')
def both(folder):
    return f'{folder / "si"},{folder / "plain"}'


@pytest.fixture(scope='module')
def test_set():
    test = data.load('digits', 'test')
    return np.asarray(test.images[:COUNT] / 16, np.float32), test.labels[:COUNT]


def make(folder, name, **options):
    path = figures.make(name, str(folder / f'figure{name}.json'), **options)
    for kind, first in (('png', b'\x89PNG'), ('pdf', b'%PDF')):
        content = path.with_suffix(f'.{kind}').read_bytes()
        assert content.startswith(first) and len(content) > 10_000
    numbers = json.loads(path.read_text())
    assert numbers['figure'] == name and numbers['environment']['command'][0] == 'python'
    return numbers


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    highest = logits.max(axis=1, keepdims=True)
    normaliser = highest[:, 0] + np.log(np.exp(logits - highest).sum(axis=1))
    return normaliser - logits[np.arange(len(labels)), labels]


# Fig. 1


def test_only_si_pgd_and_calibrated_pgd_are_blind_to_the_scale(folder, test_set):
    workdir = str(folder / 'si')
    numbers = make(folder, '1', workdirs=workdir, num_examples=COUNT, points=3, steps=STEPS)
    [curve] = numbers['curves']
    assert numbers['factors'] == [1e-3, 1.0, 1e3]
    assert len(set(curve['accuracy']['sipgd'])) == 1 and curve['sipgd_spread_points'] == 0.0
    assert curve['sipgd_images_that_change'] == 0
    # One step of the search apart from rounding: the same scale after calibration.
    assert np.ptp(curve['accuracy']['pgd-cal']) <= 1.5 / COUNT
    assert len(set(curve['accuracy']['clean'])) == 1
    images, labels = test_set
    model = load_model(workdir)
    settings = {'eps': 0.2, 'steps': STEPS}
    direct = si_jax.evaluate(model, images, labels, attacks='pgd,sipgd', **settings)
    assert_allclose(curve['accuracy']['pgd'][1], direct.accuracy['pgd'], rtol=1e-4)
    assert_allclose(curve['accuracy']['sipgd'][1], direct.accuracy['sipgd'], rtol=1e-4)
    top = np.sort(np.asarray(model(images).logits), axis=1)
    assert_allclose(curve['median_gap'], np.median(top[:, -1] - top[:, -2]), rtol=1e-4)
    best = int(np.argmin(curve['accuracy']['pgd']))
    assert curve['best_pgd'] == {
        'factor': numbers['factors'][best],
        'accuracy': curve['accuracy']['pgd'][best],
    }


class Linear:
    """Logits [B, 2] = (1/2, -1/2) times the sum of the pixels, times the variables."""

    def apply(self, variables, images):
        total = images.sum(axis=(1, 2, 3))
        return si_jax.Outputs(variables * jnp.stack([total, -total], axis=1) / 2)


def test_the_gradient_vanishes_where_the_probability_rounds_to_one():
    images = np.asarray([50.0, 150.0, 150.0], np.float32).reshape(3, 1, 1, 1)
    vanishing = logit_scale.compile_vanishing(Linear())
    labels = np.asarray([0, 0, 1], np.int32)
    one, half = np.float32(1), np.float32(0.5)
    # Of a gap of 150 nothing is left in float32 (exp(-104) is 0), unless the other class is the true one.
    assert vanishing((one, one), images, labels).tolist() == [False, True, False]
    assert vanishing((one, half), images, labels).tolist() == [False, False, False]


# Fig. 2


def test_the_plane_is_trained_with_and_without_si(folder):
    numbers = make(folder, '2', epochs=2, runs=1)
    plain, si = numbers['curves']
    assert (plain['label'], si['label']) == ('AT', 'AT-SI') and numbers['epoch'] == [0, 1, 2]
    for name in ('weight_norm', 'angle', 'image_gradient', 'robust_accuracy'):
        assert plain[name][0][0] == si[name][0][0]  # the same weights and data before training
    assert plain['weight_norm'][0][2] != si['weight_norm'][0][2]
    assert np.shape(si['plane']['features']) == (2 * toy.IMAGES, 2)


def test_the_gradient_of_the_weights_is_split_along_and_across(monkeypatch):
    monkeypatch.setattr(toy, 'attacked', lambda model, params, images, labels, key: images)
    model = toy.Plane()
    images, labels = toy.clouds(0)
    images, labels = images[::16].astype(np.float64), labels[::16]
    params = model.init(jax.random.key(0), images)['params']
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    key, si = jax.random.key(1), defenses.with_si(defenses.DEFENSES['at'])
    measured, plane = toy.quantities(si, model, params, images, labels, key)
    outputs = model.apply({'params': params}, images)
    assert_array_equal(plane['features'], outputs.features)
    z, kernel = np.asarray(outputs.features), np.asarray(outputs.kernel)

    def loss(kernel):
        cosines = z @ kernel / np.linalg.norm(z, axis=1)[:, None] / np.linalg.norm(kernel, axis=0)
        shifted = 15 * (cosines - 0.2 * np.eye(2)[labels])
        return np.mean(cross_entropy(z @ kernel, labels)) + 0.2 * np.mean(cross_entropy(shifted, labels))

    def slope(direction):
        return (loss(kernel + 1e-6 * direction) - loss(kernel - 1e-6 * direction)) / 2e-6

    unit = kernel / np.linalg.norm(kernel, axis=0)
    normal = np.stack([-unit[1], unit[0]])
    along, across = (
        np.hypot(*(slope(direction * np.eye(2)[k]) for k in range(2))) for direction in (unit, normal)
    )
    assert_allclose(measured['weight_gradient_along'], along, rtol=1e-6)
    assert_allclose(measured['weight_gradient_across'], across, rtol=1e-6)
    cosines = (z @ unit / np.linalg.norm(z, axis=1)[:, None])[np.arange(len(labels)), labels]
    assert_allclose(measured['angle'], np.degrees(np.arccos(cosines)).mean())
    # The regulariser alone turns the weights and does not lengthen them.
    regulariser = si._replace(outer={'si': si.outer[defenses.SI_TERM]})
    alone, _ = toy.quantities(regulariser, model, params, images, labels, key)
    assert alone['weight_gradient_along'] < 1e-12 < alone['weight_gradient_across']


# Fig. 3


def test_the_loss_surface_is_the_loss(folder, both, test_set):
    numbers = make(folder, '3', workdirs=both, num_examples=2, points=3, steps=STEPS)
    images, labels = test_set
    images, labels = images[:2], labels[:2]
    assert [row['label'] for row in numbers['surfaces']] == ['TRADES-SI', 'TRADES']
    r = loss_surface.random_directions(Threat('linf', 0.2), images, 0)
    for name, row in zip(('si', 'plain'), numbers['surfaces'], strict=True):
        model, surface = load_model(folder / name), np.asarray(row['loss'])
        assert_allclose(surface[:, 1, 1], cross_entropy(model(images).logits, labels), rtol=1e-4)
        result = si_jax.evaluate(
            model, images, labels, attacks='pgd', eps=0.2, steps=STEPS, return_images=True
        )
        attacked = result.images['pgd']
        assert_allclose(surface[:, 2, 1], cross_entropy(model(attacked).logits, labels), rtol=1e-4)
        corner = np.clip(images - (attacked - images) + r, 0, 1).astype(np.float32)
        assert_allclose(surface[:, 0, 2], cross_entropy(model(corner).logits, labels), rtol=1e-4)


def test_second_differences_and_random_directions():
    grid = np.linspace(-1, 1, 5)
    bowl = 3 * grid[:, None] ** 2 + grid[None] ** 2
    assert_allclose(loss_surface.second_difference(np.stack([bowl, bowl.T, 0 * bowl + grid])), [1.5, 1.5, 0])
    images = np.zeros((3, 4, 4, 2), np.float32)
    signs = loss_surface.random_directions(Threat('linf', 0.25), images, 0)
    assert set(np.unique(signs)) == {-0.25, 0.25} and not np.array_equal(signs[0], signs[1])
    ball = loss_surface.random_directions(Threat('l2', 0.5), images, 0)
    assert_allclose(np.linalg.norm(ball.reshape(3, -1), axis=1), 0.5, rtol=1e-6)


# Fig. 4


def test_directions_are_filter_normalised(folder):
    params = load_model(folder / 'si').variables['params']
    direction = weight_surface.filter_normalised(jax.random.key(0), params)
    for layer, arrays in params.items():
        kernel, moved = np.asarray(arrays['kernel']), np.asarray(direction[layer]['kernel'])
        for j in range(kernel.shape[-1]):
            assert_allclose(np.linalg.norm(moved[..., j]), np.linalg.norm(kernel[..., j]), rtol=1e-5)
        assert not np.any(direction[layer]['bias'])


def test_the_weight_surface_attacks_anew(folder, both, test_set):
    options = {'num_examples': COUNT, 'points': 3, 'steps': STEPS, 'directions': 2, 'seed': 5}
    numbers = make(folder, '4', workdirs=both, **options)
    images, labels = test_set
    row, model = numbers['surfaces'][1], load_model(folder / 'plain')
    loss, accuracy = np.asarray(row['loss']), np.asarray(row['accuracy'])
    assert loss.shape == accuracy.shape == (2, 3) and loss[0, 1] == loss[1, 1]
    key = jax.random.fold_in(jax.random.key(5), 1)
    u = weight_surface.filter_normalised(key, model.variables['params'])
    params = jax.tree.map(lambda w, step: w + step, model.variables['params'], u)
    for column, variables in ((1, model.variables), (2, model.variables | {'params': params})):
        moved = types.SimpleNamespace(module=model.module, variables=variables)

        def classifier(x, moved=moved):
            return moved.module.apply(moved.variables, x)

        result = si_jax.evaluate(
            classifier, images, labels, attacks='pgd', eps=0.2, steps=STEPS, seed=5, return_images=True
        )
        expected = cross_entropy(classifier(result.images['pgd']).logits, labels).mean()
        assert_allclose(loss[1, column], expected, rtol=1e-4)
        assert_allclose(accuracy[1, column], result.accuracy['pgd'], rtol=1e-4)


# Fig. 5


def test_histograms_count_every_image(folder, both):
    numbers = make(folder, '5', workdirs=both, num_examples=COUNT, points=8, steps=STEPS)
    for row in numbers['histograms']:
        for name in ('true', 'other', 'lead'):
            assert sum(row['counts'][name]) == COUNT
        low, _, high = row['quantiles_5_50_95']['true']
        assert -1 <= low <= row['mean']['true'] <= high <= 1
        assert_allclose(row['mean']['lead'], row['mean']['true'] - row['mean']['other'], atol=1e-4)


def test_the_true_class_and_the_highest_other():
    cosines = np.asarray([[0.5, 0.9, -0.2], [0.1, -0.3, 0.0]])
    values = cosine_histogram.true_and_other(cosines, np.asarray([1, 2]))
    assert_array_equal(values['true'], [0.9, 0.0])
    assert_array_equal(values['other'], [0.5, 0.1])
    assert_allclose(values['lead'], [0.4, -0.1])


# Norms


def test_norms_are_read_from_the_runs_and_seeds_make_one_curve(folder, both):
    numbers = make(folder, 'norms', workdirs=f'{both},{folder / "si1"}')
    si, plain = numbers['curves']
    assert (si['label'], si['seeds'], plain['label']) == ('TRADES-SI', [0, 1], 'TRADES')
    assert si['epoch'] == [1, 2, 3]
    assert_allclose(si['weight_norm'], [[0.1, 0.2, 0.3], [2.1, 2.2, 2.3]])
    assert_allclose(plain['median_gap'], [[3.1, 3.2, 3.3]])


def test_norms_that_were_not_measured(tmp_path):
    for name in ('a', 'b'):
        make_workdir(tmp_path / name, 'small_cnn', width=2, seeds=(0,), metrics=(0.5,))
    edit_config(tmp_path / 'b', seed=1)
    with pytest.raises(InputError, match='metrics.jsonl cannot be read'):
        figures.make('norms', str(tmp_path / 'x.json'), workdirs=str(tmp_path / 'a'))
    (tmp_path / 'a' / 'metrics.jsonl').write_text('{"step": 1, "epoch": 1, "train/loss": 1.0}\n')
    with pytest.raises(InputError, match='train with --config.data.validation=1000'):
        figures.make('norms', str(tmp_path / 'x.json'), workdirs=str(tmp_path / 'a'))
    write_metrics(tmp_path / 'a')
    write_metrics(tmp_path / 'b', epochs=(1, 2))
    with pytest.raises(
        InputError, match=r'a was measured after epochs 1 to 3 \(3 of them\), .*b after 1 to 2'
    ):
        figures.make('norms', str(tmp_path / 'x.json'), workdirs=f'{tmp_path / "a"},{tmp_path / "b"}')


# What is refused, and labels


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('6', {}, "unknown figure '6'"),
        ('1', {}, 'give --workdirs=FOLDER,FOLDER'),
        (
            '2',
            {'workdirs': 'si'},
            'figure 2 has no --workdirs: it belongs to 1, 3, 4, 5, norms; it has --epochs',
        ),
        ('1', {'workdirs': ' , '}, 'names no folder'),
        ('1', {'workdirs': 'si,si/'}, 'names si 2 times'),
        ('1', {'workdirs': 'nowhere'}, "'nowhere' is no workdir of train.py"),
        ('1', {'workdirs': 'si', 'points': 4}, 'points=4 must be odd'),
        (
            '1',
            {'workdirs': 'si', 'num_examples': 398},
            'num_examples=398 is more than the 397 images of digits',
        ),
        ('3', {'workdirs': 'si', 'points': 2}, 'points=2 must be an integer of at least 3'),
        ('3', {'workdirs': 'si', 'directions': 2}, 'figure 3 has no --directions: it belongs to 4'),
        ('4', {'workdirs': 'si', 'points': 20}, 'points=20 must be odd'),
        ('5', {'workdirs': 'si', 'checkpoint': 'first'}, 'unknown checkpoint'),
        ('5', {'workdirs': 'si,far'}, r'si has threat.eps=0.2, far 0.1: one figure shows runs on the same'),
        ('5', {'workdirs': 'si,twin'}, 'si and twin are the same run twice'),
    ],
)
def test_what_is_refused(folder, monkeypatch, name, options, message):
    monkeypatch.chdir(folder)
    for other in ('far', 'twin'):
        (folder / other).mkdir(exist_ok=True)
        (folder / other / 'config.json').write_text((folder / 'si' / 'config.json').read_text())
    edit_config(folder / 'far', threat__eps=0.1)
    edit_config(folder / 'twin', data__dir='elsewhere')
    with pytest.raises(InputError, match=message):
        figures.make(name, **options)


def test_labels_tell_runs_of_one_method_apart(folder):
    configs = inputs.read_configs(f'{folder / "si"},{folder / "si1"},{folder / "plain"}')
    assert list(inputs.labels_of(configs).values()) == ['TRADES-SI (seed=0)', 'TRADES-SI (seed=1)', 'TRADES']


def test_pictures_can_be_drawn_again_from_the_file(folder, both):
    path = figures.make('norms', str(folder / 'again.json'), workdirs=both)
    before, png = path.read_bytes(), path.with_suffix('.png').read_bytes()
    path.with_suffix('.png').unlink()
    assert figures.redraw('norms', str(path)) == path
    assert path.with_suffix('.png').read_bytes() == png and path.read_bytes() == before
    with pytest.raises(InputError, match='holds schema 1, figure norms, not schema 1, figure 5'):
        figures.redraw('5', str(path))
    with pytest.raises(InputError, match='--seed does not go with --redraw'):
        command.run(figure='norms', redraw_file=str(path), seed=1)
    path.write_text('[1]')
    with pytest.raises(InputError, match='holds schema None'):
        figures.redraw('norms', str(path))


def test_the_command(folder, both, capsys):
    output = f'--output={folder / "command.json"}'
    assert report.main(['--figure=norms', f'--workdirs={both}', output]) == 0
    assert 'command.json, command.png and command.pdf' in capsys.readouterr().out
    assert json.loads((folder / 'command.json').read_text())['figure'] == 'norms'
    assert report.main(['--figure=5', f'--workdirs={folder / "none"}', output]) == 2
    assert capsys.readouterr().err.startswith('report.py: ')


def test_help_names_every_figure_and_option():
    text = command.parser().format_help()
    for name, figure in FIGURES.items():
        assert f'  {name:<6} {figure.about}' in text
        for option in figure.options:
            assert f'--{option}' in text

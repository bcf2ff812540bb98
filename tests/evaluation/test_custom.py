"""Attacks of the user's own: run, audited, verified, and refused with their name."""

import functools
import itertools
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import ATTACKS, InputError, Randomised, evaluate
from si_jax.attacks import Attack
from si_jax.cli.subject import load_attribute
from si_jax.evaluation.request import Request
from si_jax.objectives import margin
from si_jax.outputs import scaled_cosine
from si_jax.runtime.fingerprint import _text, fingerprint
from tests.helpers.problems import images_and_labels, net

PAGE = (pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'attacks.md').read_text()
NET = net()
IMAGES, LABELS = images_and_labels(40, NET)
ONE = jax.local_devices()[:1]


def run(attacks, classifier=NET, **settings):
    takes = Request.of(IMAGES, LABELS, attacks=attacks).takes.values()
    steps = {'steps': 3} if any('steps' in taken for taken in takes) else {}
    settings = {'eps': 0.04, 'devices': ONE, 'batch_size': 16, **steps, **settings}
    return evaluate(classifier, IMAGES, LABELS, attacks=attacks, **settings)


def corner(classifier, images, labels, threat, key):
    """A random corner of the ball."""
    signs = jax.random.rademacher(key, images.shape, images.dtype)
    return threat.project(images + threat.eps * signs, images)


def one_step(classifier, images, labels, threat, key):
    def loss(x):
        logits = jax.nn.log_softmax(classifier(x).logits)
        return -jnp.sum(jnp.take_along_axis(logits, labels[:, None], axis=1))

    return threat.project(images + threat.eps * jnp.sign(jax.grad(loss)(images)), images)


def test_the_attack_of_the_page_runs():
    (code,) = (block for block in re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL) if 'def ' in block)
    assert 15 <= len([line for line in code.split('result =')[0].splitlines() if line.strip()]) <= 30
    space = {'my_model': NET, 'images': IMAGES, 'labels': LABELS}
    above = '\n' * PAGE[: PAGE.index(code)].count('\n')  # line numbers are those of the page
    exec(compile(above + code, 'docs/attacks.md', 'exec'), space)
    result = space['result']
    (own,) = set(result.attacks) - {'pgd'}
    assert result.attacks[own].protocol['own'] == 'callable'
    assert result.accuracy[own] < result.accuracy['clean']
    assert result.accuracy[own] <= result.accuracy['pgd'] + 0.05


def test_a_callable_is_verified_like_the_others():
    result = run(['fgsm', one_step, corner], return_images=True, restarts=2)
    # The same attack as a row of the catalogue.
    assert_array_equal(result.correct['one_step'], result.correct['fgsm'])
    np.testing.assert_allclose(result.images['one_step'], result.images['fgsm'], atol=1e-6)
    record = result.attacks['corner']
    assert record.runs.shape == (2, 40) and record.max_perturbation == pytest.approx(0.04, abs=1e-6)
    predicted = np.argmax(NET(jnp.asarray(result.images['corner'])).logits, axis=1)
    assert_array_equal(predicted == LABELS, result.correct['corner'])
    assert record.protocol == {'name': 'corner', 'own': 'callable', 'source': fingerprint(corner)}
    assert result.warnings == [] and 'corner' in result.table()
    entry = result.to_json()['attacks']['corner']
    assert entry['steps'] is None and entry['restarts'] == 2 and 'only' in entry
    # The same again; another seed is another attack.
    again, other = (run([corner], return_images=True, seed=seed).images['corner'] for seed in (0, 1))
    assert_array_equal(again, run(corner, return_images=True).images['corner'])
    assert np.abs(again - other).max() > 0.05


def test_an_attack_record_runs_as_the_family_does():
    mine = Attack(margin, start=ATTACKS['cw'].start)
    result = run(['cw', ('mine', mine), ('sharp', ATTACKS['sipgd']._replace(score=scaled_cosine(40.0)))])
    assert_array_equal(result.correct['mine'], result.correct['cw'])
    assert result.attacks['mine'].steps == 3 and result.attacks['mine'].protocol['own'] == 'Attack'
    assert run(mine).attacks.keys() == {'own'}
    # Features are looked for if its score reads them, and refused where there are none.
    with pytest.raises(InputError, match="attack 'sharp' needs the features"):
        run([('sharp', ATTACKS['sipgd']._replace(score=scaled_cosine(40.0)))], lambda x: NET(x).logits ** 3)


def too_far(c, x, y, threat, key):
    return x + 1.5 * threat.eps * (x < 0.5)


def out_of_range(c, x, y, threat, key):
    return x - threat.eps


def cut(c, x, y, threat, key):
    return x[:, :3]


def widened(c, x, y, threat, key):
    return x.astype(jnp.float64)


def nothing(c, x, y, threat, key):
    return None


def not_a_number(c, x, y, threat, key):
    return x.at[2, 0, 0, 0].set(jnp.nan)


CALLS = itertools.count()


def moody(c, x, y, threat, key):
    return threat.project(x + 0.01 * (next(CALLS) % 2), x)


@pytest.mark.parametrize(
    ('attack', 'message'),
    [
        (
            too_far,
            r"attack 'too_far' left its threat model on image \d+: linf distance 0\.06.*threat.project",
        ),
        (out_of_range, r"attack 'out_of_range' left its threat model .* outside \[0, 1\]"),
        (cut, r"attack 'cut' returned images of shape \(16, 3, 6, 2\), and was given \(16, 6, 6, 2\)"),
        (widened, "attack 'widened' returned float64 images, and was given float32"),
        (nothing, "attack 'nothing' returned NoneType: it must return the adversarial images"),
        (
            not_a_number,
            "attack 'not_a_number' returned NaN or infinite pixels for image 2: look for a division",
        ),
        (
            moody,
            r"attack 'moody' is not deterministic: .* by up to 0\.01\. Draw all random numbers from the key",
        ),
    ],
)
def test_what_an_attack_must_not_do(attack, message):
    with pytest.raises(InputError, match=message):
        run([attack])


@pytest.mark.parametrize(
    ('attacks', 'message'),
    [
        ([('pgd', corner)], "cannot be called 'pgd', which is taken"),
        ([('transfer-a', corner)], "cannot be called 'transfer-a', which is taken"),
        ([('a/b', corner)], "'a/b' cannot be a name: use letters"),
        ([corner, corner], r"attack 'corner' is given 2 times: give pairs \('name', attack\)"),
        (['pgd', 'pgd'], "attack 'pgd' is given 2 times: give it once"),
        ([3], '3 is no attack: give a name, an Attack record, or a callable'),
        (['pdg'], "unknown attack 'pdg': did you mean"),
        ([], 'no attack given'),
    ],
)
def test_what_is_no_list_of_attacks(attacks, message):
    with pytest.raises(InputError, match=message):
        run(attacks)


def test_names():
    names = run([functools.partial(corner), ('mine', lambda c, x, y, t, k: x), lambda c, x, y, t, k: x])
    assert list(names.attacks) == ['corner', 'mine', 'own']
    assert names.accuracy['own'] == names.accuracy['clean']


def test_a_state_belongs_to_the_text_of_an_attack(tmp_path):
    def moved(share):
        return lambda c, x, y, t, k: t.project(x + share * t.eps, x)

    assert fingerprint(moved(0.5)) == fingerprint(moved(0.5)) != fingerprint(moved(1.0))
    assert fingerprint(corner) != fingerprint(one_step)
    first = run([('mine', moved(0.5))], state_path=tmp_path)
    assert_array_equal(
        run([('mine', moved(0.5))], state_path=tmp_path).correct['mine'], first.correct['mine']
    )
    with pytest.raises(InputError, match='own attacks was .* and is '):
        run([('mine', moved(1.0))], state_path=tmp_path)


@pytest.mark.parametrize('text', ['', 'x = (', "'''", ' def f'])
def test_an_attack_whose_file_was_changed_since_has_its_program_as_text(tmp_path, text):
    found = []
    for moved in (
        'x + t.eps',
        'x - t.eps',
        'x + t.size',
        'x + 2 * t.eps',
        '(lambda: x + 3)()',
        '(lambda: x + 4)()',
    ):
        file = tmp_path / f'attack{len(found)}.py'
        file.write_text(program := f'\n\ndef mine(c, x, y, t, k):\n    return {moved}\n')
        exec(compile(program, str(file), 'exec'), names := {})
        file.write_text(text)
        found.append(fingerprint(names['mine']))
    assert len(set(found)) == len(found)


SHARE = 0.5


def shares(size=1.0):
    def attack(c, x, y, t, k):
        return t.project(x + SHARE * size * t.eps, x)

    return attack


def scaled_by(c, x, y, t, k, factor=0.5):
    return halved(t.project(x + factor * t.eps, x), x)


def halved(moved, x):
    return (moved + x) / 2


class Stepping:
    def __init__(self, sizes):
        self.sizes = sizes

    def __call__(self, c, x, y, t, k):
        return t.project(x + self.sizes.mean() * t.eps, x)


def test_what_a_function_names_and_holds_belongs_to_it(monkeypatch):
    def changes(make, name, value):
        before = fingerprint(make())
        assert before == fingerprint(make())
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[__name__], name, value)
            return before != fingerprint(make())

    assert changes(shares, 'SHARE', 0.25)
    assert changes(lambda: scaled_by, 'halved', lambda moved, x: x)
    assert fingerprint(scaled_by) != fingerprint(one_step)
    by_default = fingerprint(scaled_by)
    monkeypatch.setattr(scaled_by, '__defaults__', (0.25,))
    assert fingerprint(scaled_by) != by_default
    first, second = (Stepping(np.array([size, 0.5])) for size in (0.5, 1.0))
    assert fingerprint(first) == fingerprint(Stepping(np.array([0.5, 0.5]))) != fingerprint(second)


def test_an_attack_that_moves_nothing_is_said_to():
    (found,) = run([('idle', lambda c, x, y, t, k: x)]).warnings
    assert 'idle moved none of the 40 images' in found and 'square' in found


def test_a_randomised_classifier_gets_its_keys():
    def noisy(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
        return NET(images).logits + 0.01 * noise

    def attack(classifier, images, labels, threat, key):
        logits = classifier(images, jax.random.split(key, len(images))).logits
        return threat.project(images + threat.eps * jnp.sign(logits[:, :1, None, None]), images)

    assert 0 < run([attack], Randomised(noisy)).accuracy['attack'] < 1


def versions(tmp_path, *texts):
    """The fingerprints of `attack` of a file with these texts."""
    found = []
    for number, text in enumerate(texts):
        path = tmp_path / f'version_{number}.py'
        path.write_text(text)
        found.append(fingerprint(load_attribute(f'{path}:attack', 'attacks')))
    return found


def test_what_the_functions_inside_an_attack_name_is_of_its_code(tmp_path):
    text = """
import jax

SCALE = 1.0
TABLE = {'a': 1}

class Helper:
    def double(self, x):
        return 2 * x

def helper(x):
    return x + 1

def attack(classifier, images, labels, threat, key):
    def loss(x):
        return SCALE * TABLE['a'] * helper(Helper().double(x)).sum()
    return threat.project(images + jax.grad(loss)(images), images)
"""
    changed = [
        text.replace('SCALE = 1.0', 'SCALE = 2.0'),
        text.replace("{'a': 1}", "{'a': 2}"),
        text.replace('x + 1', 'x + 2'),
        text.replace('2 * x', '3 * x'),
    ]
    first, again, *others = versions(tmp_path, text, text, *changed)
    assert first == again and len({first, *others}) == 5
    # What the library does is said by its version.
    assert fingerprint(margin) == fingerprint(margin) and 'def ' not in ''.join(_text(margin, set()))
    # What its functions were made with is not.
    assert (
        fingerprint(scaled_cosine(15.0))
        == fingerprint(scaled_cosine(15.0))
        != fingerprint(scaled_cosine(40.0))
    )

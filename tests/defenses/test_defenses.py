"""Table 1: every row against formulas written out here, with and without SI, and wrong configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from si_jax import objectives
from si_jax.attacks.pgd import STARTS
from si_jax.defenses import (
    DEFENSES,
    SI_TERM,
    Defense,
    Position,
    Term,
    from_config,
    register,
    with_he,
    with_inner,
    with_si,
    with_smoothing,
)
from si_jax.errors import InputError
from si_jax.outputs import Outputs, logits
from si_jax.training import recipes

# See tests/training: test_newer_single_step.py, test_ikl.py, test_hat.py and test_branches.py.
NEWER = ('nfgsm', 'elle', 'ellea', 'nuat', 'dkl', 'hat', 'dajat')
BATCH, FEATURES, CLASSES = 6, 4, 5
S, M, BETA = 15.0, 0.2, 0.2


class Random:
    """Natural and adversarial outputs, and everything that Table 1 computes from them in NumPy."""

    def __init__(self):
        rng = np.random.default_rng(0)
        z, z_adv = rng.normal(size=(2, BATCH, FEATURES))
        w, b = rng.normal(size=(FEATURES, CLASSES)), rng.normal(size=CLASSES)
        self.y = rng.integers(0, CLASSES, BATCH)
        self.g, self.g_adv = z @ w + b, z_adv @ w + b
        unit = w / np.linalg.norm(w, axis=0)
        self.cos_adv = z_adv / np.linalg.norm(z_adv, axis=1, keepdims=True) @ unit
        self.nat = Outputs(jnp.asarray(self.g), jnp.asarray(z), jnp.asarray(w))
        self.adv = Outputs(jnp.asarray(self.g_adv), jnp.asarray(z_adv), jnp.asarray(w))
        self.labels = jnp.asarray(self.y, jnp.int32)

    def of_label(self, score):
        return score[np.arange(BATCH), self.y]

    def ce(self, score):
        return -self.of_label(log_softmax(score, axis=1))

    def kl(self):
        p, q = softmax(self.g, axis=1), softmax(self.g_adv, axis=1)
        return (p * np.log(p / q)).sum(axis=1)

    def mart_bce(self):
        q = softmax(self.g_adv, axis=1)
        others = np.where(np.arange(CLASSES) == self.y[:, None], 0, q)
        return self.ce(self.g_adv) - np.log(1.0001 - others.max(axis=1) + 1e-12)

    def mart_kl(self):
        return self.kl() * (1.0000001 - self.of_label(softmax(self.g, axis=1)))

    def pairing(self):
        return ((self.g - self.g_adv) ** 2).mean(axis=1)

    def r_si(self, scale=S, margin=M):
        return self.ce(scale * (self.cos_adv - margin * (np.arange(CLASSES) == self.y[:, None])))


# Inner and outer objective of each row of Table 1 without SI, and the forward passes in training.
TABLE = {
    'at': (lambda r: r.ce(r.g_adv), lambda r: r.ce(r.g_adv), ('adv',)),
    'trades': (lambda r: r.kl(), lambda r: r.ce(r.g) + 6 * r.kl(), ('nat', 'adv')),
    'alp': (
        lambda r: r.ce(r.g_adv),
        lambda r: 0.5 * r.ce(r.g) + 0.5 * r.ce(r.g_adv) + 3 * r.pairing(),
        ('nat', 'adv'),
    ),
    'mart': (lambda r: r.ce(r.g_adv), lambda r: r.mart_bce() + 6 * r.mart_kl(), ('nat', 'adv')),
}


@pytest.fixture
def random():
    return Random()


def inner(defense, random):
    scores = [defense.inner_score(part) for part in (random.adv, random.nat)]
    return defense.inner(*scores, random.labels)


def outer(defense, random):
    """The weighted sum; None stands in for every score that a term does not use."""
    parts = {'adv': random.adv, 'nat': random.nat}
    total = 0.0
    for term in defense.outer.values():
        scores = [term.score(parts[part]) if part in term.objective.uses else None for part in ('adv', 'nat')]
        total = total + term.weight * term.objective(*scores, random.labels)
    return total


def test_the_table_has_these_rows():
    assert set(DEFENSES) == {'standard', *TABLE, 'freeat', 'gat', 'rfgsm', 'gradalign', 'eat', *NEWER}


@pytest.mark.parametrize('name', TABLE)
def test_rows_of_table_1(name, random):
    inner_by_hand, outer_by_hand, passes = TABLE[name]
    defense = DEFENSES[name]
    np.testing.assert_allclose(inner(defense, random), inner_by_hand(random), rtol=1e-9)
    np.testing.assert_allclose(outer(defense, random), outer_by_hand(random), rtol=1e-9)
    assert (defense.passes, defense.start, defense.attack_bn) == (passes, 'uniform', 'eval')
    assert defense.attack.start is STARTS['uniform']
    assert defense.attack.steps is None and defense.attack.step_size is None


@pytest.mark.parametrize('name', TABLE)
def test_rows_of_table_1_with_si(name, random):
    _, outer_by_hand, passes = TABLE[name]
    defense = with_si(DEFENSES[name])
    np.testing.assert_allclose(inner(defense, random), random.ce(S * random.cos_adv), rtol=1e-9)
    np.testing.assert_allclose(
        outer(defense, random), outer_by_hand(random) + BETA * random.r_si(), rtol=1e-9
    )
    assert defense.passes == passes
    # With labels and the adversarial images only: no KL, no natural pass in the attack, even for TRADES.
    assert defense.attack.objective.uses == {'adv'}


def test_standard_training_has_no_attack(random):
    defense = DEFENSES['standard']
    np.testing.assert_allclose(outer(defense, random), random.ce(random.g), rtol=1e-12)
    assert defense.inner is None and defense.attack is None and defense.passes == ('nat',)


def test_si_settings_reach_attack_and_regulariser(random):
    defense = with_si(DEFENSES['at'], scale=7.0, margin=0.4, weight=0.9)
    np.testing.assert_allclose(inner(defense, random), random.ce(7.0 * random.cos_adv), rtol=1e-12)
    by_hand = random.ce(random.g_adv) + 0.9 * random.r_si(7.0, 0.4)
    np.testing.assert_allclose(outer(defense, random), by_hand, rtol=1e-12)


def test_margin_is_not_in_the_attack(random):
    """Eq. 24: another margin changes the regulariser, never the attack."""
    one, other = (with_si(DEFENSES['mart'], margin=m) for m in (0.0, 0.5))
    np.testing.assert_array_equal(inner(one, random), inner(other, random))
    assert (outer(other, random) > outer(one, random)).all()


def test_si_keeps_the_row_it_is_made_from():
    for name in TABLE:
        before = dict(DEFENSES[name].outer)
        defense = with_si(DEFENSES[name])
        assert dict(DEFENSES[name].outer) == before
        assert list(defense.outer) == [*before, SI_TERM]
        assert all(defense.outer[term] is row for term, row in before.items())
        assert all(row.score is logits for row in before.values())


def test_si_gradient_reaches_features_and_kernel_of_the_adversarial_images_only(random):
    term = with_si(DEFENSES['trades']).outer[SI_TERM]

    def total(nat, adv):
        parts = {'adv': adv, 'nat': nat}
        scores = {part: term.score(parts[part]) for part in term.objective.uses}
        return jnp.sum(term.objective(scores.get('adv'), scores.get('nat'), random.labels))

    nat, adv = jax.grad(total, (0, 1))(random.nat, random.adv)
    assert all(not np.any(leaf) for leaf in nat)
    assert not np.any(adv.logits) and np.all(adv.features) and np.all(adv.kernel)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'scale': 0.0}, 'scale=0 must be positive; the paper uses 15'),
        ({'scale': -1.0}, 'scale=-1'),
        ({'scale': float('nan')}, 'scale=nan'),
        ({'margin': -0.1}, r'margin=-0.1 is not in \[0, 2\)'),
        ({'margin': 2.0}, 'margin=2 is not in'),
        ({'margin': float('nan')}, 'margin=nan'),
    ],
)
def test_si_refuses_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        with_si(DEFENSES['at'], **settings)


def test_si_needs_an_attack():
    with pytest.raises(InputError, match='standard training has none'):
        with_si(DEFENSES['standard'])


def config(**changes):
    settings = {
        'name': 'trades', 'si': False, 'weights': {}, 'scale': S, 'margin': M, 'start': 'uniform',
        'attack_bn': 'eval', 'passes': 'nat,adv',
    }  # fmt: skip
    return settings | changes


def test_config_without_changes_is_the_row():
    for name in DEFENSES:
        row = DEFENSES[name]
        fields = {'start': row.start, 'attack_bn': row.attack_bn, 'replays': row.replays}
        assert from_config(config(name=name, passes=','.join(row.passes), **fields)) == row


def test_config_sets_weights_passes_start_and_bn(random):
    defense = from_config(
        config(
            si=True,
            weights={'kl': 4.0, SI_TERM: 0.0},
            passes='nat, adv, nat',
            start='gaussian',
            attack_bn='train',
        )
    )
    np.testing.assert_allclose(outer(defense, random), random.ce(random.g) + 4 * random.kl(), rtol=1e-9)
    assert (defense.passes, defense.start, defense.attack_bn) == (('nat', 'adv', 'nat'), 'gaussian', 'train')
    assert defense.attack.start is STARTS['gaussian']


def test_table_4_without_the_regulariser_keeps_the_si_attack(random):
    """TRADES with beta = 0 is TRADES with the SI attack, not plain TRADES."""
    defense = from_config(config(si=True, weights={SI_TERM: 0.0}))
    np.testing.assert_allclose(inner(defense, random), random.ce(S * random.cos_adv), rtol=1e-12)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'name': 'trade'}, "unknown defense 'trade': did you mean trades"),
        (
            {'name': 'adv'},
            'known: alp, at, dajat, dkl, eat, elle, ellea, freeat, gat, gradalign, hat, mart',
        ),
        ({'weights': {'k1': 6.0}}, "unknown term of trades 'k1': did you mean kl"),
        ({'weights': {'si_margin_ce': 0.2}}, "unknown term of trades 'si_margin_ce'"),
        ({'weights': {'l': 1.0}, 'si': True}, 'unknown term of trades-SI'),
        ({'weights': {'kl': -1.0}}, r'defense.weights.kl=-1 must be finite and not negative'),
        ({'weights': {'kl': float('nan')}}, 'defense.weights.kl=nan'),
        ({'weights': {'kl': float('inf')}}, 'defense.weights.kl=inf'),
        ({'passes': 'nat'}, r"defense.passes='nat' lacks 'adv', which the term 'kl' needs: use 'nat,adv'"),
        ({'passes': 'adv'}, "lacks 'nat', which the term 'natural_ce' needs"),
        ({'name': 'at', 'passes': 'nat', 'si': True}, "lacks 'adv'"),
        ({'passes': 'nat,adv,clean'}, "unknown pass 'clean'"),
        ({'passes': ''}, "unknown pass ''"),
        ({'start': 'unifrom'}, "unknown start 'unifrom': did you mean uniform"),
        ({'start': 'original'}, 'gradient of its inner objective is zero at the original image'),
        ({'attack_bn': 'evaluate'}, "unknown attack_bn 'evaluate': did you mean eval"),
        ({'si': True, 'scale': 0.0}, 'scale=0 must be positive'),
        ({'name': 'standard', 'si': True, 'passes': 'nat'}, 'SI needs a defense with an attack'),
    ],
)
def test_wrong_configs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        from_config(config(**changes))


def test_original_start_is_fine_where_the_loss_has_a_slope():
    assert from_config(config(name='at', passes='adv', start='original')).start == 'original'
    assert from_config(config(si=True, start='original')).start == 'original'


# Single-step methods, hypersphere embedding and other attacks: test_single_step_parity.py follows them
# through whole steps; here are the settings of the rows and what is refused.
def test_single_step_rows():
    rows = {name: DEFENSES[name] for name in ('freeat', 'gat', 'rfgsm', 'gradalign')}
    assert {name: (row.before, row.passes, row.start, row.attack_bn) for name, row in rows.items()} == {
        'freeat': ((), ('adv',), 'original', 'eval'),
        'gat': (('nat',), ('adv', 'nat'), 'half_signs', 'eval'),
        'rfgsm': (('start',), ('adv',), 'uniform', 'train'),
        'gradalign': (('nat',), ('adv', 'random'), 'original', 'train'),
    }
    assert {name: (row.steps, row.step_size, row.replays) for name, row in rows.items()} == {
        'freeat': (1, 1.0, 8), 'gat': (1, 1.0, 1), 'rfgsm': (1, 1.25, 1), 'gradalign': (1, 1.25, 1),
    }  # fmt: skip


@pytest.mark.parametrize('si', [False, True])
@pytest.mark.parametrize(
    ('step', 'weight'), [(0, 0), (1, 10), (3, 10), (4, 0), (5, 0), (6, 10), (16, 10), (17, 0), (18, 40)]
)
def test_gat_climbs_the_distance_on_odd_batches(step, weight, si, random):
    """4 epochs of 5 batches; lambda rises at step 0.86 * 20 = 17."""
    defense = with_si(DEFENSES['gat']) if si else DEFENSES['gat']
    attack = defense.attack_at(Position(jnp.asarray(step), jnp.asarray(step % 5), 20))
    scores = [attack.score(part) for part in (random.adv, random.nat)]
    distance = ((softmax(random.g, axis=1) - softmax(random.g_adv, axis=1)) ** 2).sum(axis=1)
    expected = random.ce(S * random.cos_adv if si else random.g_adv) + weight * distance
    np.testing.assert_allclose(attack.objective(*scores, random.labels, 0), expected, rtol=1e-6)


def test_a_weight_in_the_config_reaches_both_halves_of_gat():
    row = DEFENSES['gat']
    fields = {'start': row.start, 'passes': 'adv,nat', 'weights': {'guided': 3.0}}
    built = from_config(config(name='gat', **fields))
    assert built.outer['guided'].weight == built.inner_terms['guided'].weight == 3.0


def test_si_leaves_freeat_its_one_backward_pass():
    defense = with_si(DEFENSES['freeat'])
    assert defense.inner is None and list(defense.outer) == ['adversarial_ce', SI_TERM]
    other = with_inner(defense, 'si')
    assert other.inner is not None and other.outer == defense.outer


def test_other_attacks(random):
    trades = DEFENSES['trades']
    np.testing.assert_allclose(inner(with_inner(trades, 'ce'), random), random.ce(random.g_adv), rtol=1e-9)
    assert with_inner(trades, 'calibrated_ce').calibrated and not with_inner(trades, 'ce').calibrated
    regulariser = with_inner(with_si(trades), 'kl')
    np.testing.assert_allclose(inner(regulariser, random), random.kl(), rtol=1e-9)
    np.testing.assert_allclose(outer(regulariser, random), outer(with_si(trades), random), rtol=1e-12)
    assert with_inner(trades, 'si').outer == trades.outer


def test_hypersphere_embedding_reads_cosines(random):
    """The random logits stand in for cosines; the margin is in the outer cross-entropies alone."""
    for name in ('at', 'trades', 'alp'):
        assert with_he(DEFENSES[name]).hypersphere
    ce, margin_ce = (
        random.ce(S * random.g_adv),
        lambda g: random.ce(S * (g - M * (np.arange(CLASSES) == random.y[:, None]))),
    )
    np.testing.assert_allclose(inner(with_he(DEFENSES['at']), random), ce, rtol=1e-9)
    expected = 0.5 * margin_ce(random.g) + 0.5 * margin_ce(random.g_adv) + 3 * random.pairing()
    np.testing.assert_allclose(outer(with_he(DEFENSES['alp']), random), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'name': 'mart', 'he': True}, 'hypersphere embedding is defined for at, trades and alp'),
        ({'name': 'gat', 'he': True}, 'is defined for at, trades and alp'),
        ({'name': 'freeat', 'he': True}, 'is defined for at, trades and alp'),
        ({'name': 'standard', 'he': True}, 'is defined for at, trades and alp'),
        ({'he': True, 'si': True}, 'SI and hypersphere embedding are alternatives'),
        ({'he': True, 'scale': 0.0}, 'scale=0 must be positive'),
        ({'inner': 'cw'}, "unknown inner objective 'cw'"),
        ({'name': 'standard', 'inner': 'ce', 'passes': 'nat'}, "inner='ce' needs a defense with an attack"),
        ({'name': 'freeat', 'inner': 'kl', 'passes': 'adv'}, "inner='kl' needs natural scores"),
        ({'name': 'freeat', 'inner': 'calibrated_ce', 'passes': 'adv'}, 'needs natural scores'),
        ({'inner': 'kl', 'si': True, 'start': 'original'}, 'zero at the original image'),
        ({'replays': 8}, 'defense.replays=8 must be 1, or more with freeat'),
        ({'replays': 0}, 'defense.replays=0'),
        ({'name': 'gradalign', 'passes': 'adv'}, "lacks 'random', which the term 'misalignment' needs"),
    ],
)
def test_wrong_single_step_and_he_configs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        from_config(config(**changes))


def own(**changes):
    outer = {'natural_ce': Term(1.0, objectives.natural_ce), 'kl': Term(2.0, objectives.kl)}
    return Defense(outer=outer, inner=objectives.kl)._replace(**changes)


def test_a_defense_of_your_own_is_a_row_like_any_other(defenses_before):
    assert register('mine', own(passes=('nat', 'adv', 'nat'), steps=3)) == 'mine'
    row = recipes.defense('mine', si=True)
    assert row.weights.to_dict() == {'natural_ce': 1.0, 'kl': 2.0, SI_TERM: 0.2}
    assert row.passes == 'nat,adv,nat'
    assert recipes.paper('mine', dataset='digits', arch='small_cnn').attack.steps == 3
    made = from_config(row)
    assert made.outer['kl'].weight == 2.0 and made.passes == ('nat', 'adv', 'nat')
    register('mine', own())  # the file of a config may be read twice
    assert from_config(recipes.defense('mine')).passes == ('nat', 'adv')


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('trades', {}, "defense 'trades' is a row of this library: give yours another name"),
        ('my defense', {}, "'my defense' cannot be the name"),
        ('mine', None, "'mine' must be a si_jax.defenses.Defense, not dict"),
        ('mine', {'passes': ('adv',)}, "lacks 'nat', which the term 'natural_ce' needs: use 'nat,adv'"),
        ('mine', {'passes': ('nat', 'adversarial')}, "unknown pass 'adversarial'"),
        ('mine', {'start': 'unifrom'}, 'did you mean uniform'),
        ('mine', {'start': 'original'}, 'leaves mine without an attack'),
        ('mine', {'attack_bn': 'off'}, "unknown attack_bn 'off'"),
        ('mine', {'replays': 0}, 'defense.replays=0 must be 1'),
        ('mine', {'outer': {}}, 'mine has no term in `outer`'),
        (
            'mine',
            {'outer': {'loss': DEFENSES['trades'].outer['kl']}},
            'the terms loss of mine have names of',
        ),
        ('mine', {'before': ('adv',)}, "unknown pass before the attack 'adv'"),
        ('mine', {'inner': None}, "mine has no attack, and these passes need one; use 'nat'"),
    ],
)
def test_defenses_of_your_own_that_are_refused(defenses_before, name, changes, message):
    with pytest.raises(InputError, match=message):
        register(name, {} if changes is None else own(**changes))
    assert DEFENSES == defenses_before


def test_label_smoothing_is_in_the_cross_entropies_of_the_loss_alone():
    row = with_si(DEFENSES['alp'])
    smoothed = with_smoothing(row, 0.1, 'others')
    changed = {name for name in row.outer if smoothed.outer[name] != row.outer[name]}
    assert changed == {'natural_ce', 'adversarial_ce'}
    assert smoothed.inner is row.inner and with_smoothing(row, 0.0, 'all') == row
    y, score = jnp.array([1, 0], jnp.int32), jnp.array([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]])
    log_p = log_softmax(np.asarray(score), axis=1)
    q = np.array([[0.05, 0.9, 0.05], [0.9, 0.05, 0.05]])
    for name, given in (('natural_ce', (None, score)), ('adversarial_ce', (score, None))):
        np.testing.assert_allclose(smoothed.outer[name].objective(*given, y), -(q * log_p).sum(1), rtol=1e-6)


@pytest.mark.parametrize(
    ('row', 'settings', 'message'),
    [
        ('mart', (0.1, 'all'), 'mart_bce, weighted_kl: of these no smoothed form was published'),
        ('freeat', (0.1, 'all'), 'FreeAT climbs the loss'),
        ('trades', (1.0, 'all'), r'defense.smoothing=1 is not in \[0, 1\)'),
        ('trades', (0.1, 'some'), "unknown defense.smoothing_over 'some'.*others"),
    ],
)
def test_wrong_smoothing_is_refused(row, settings, message):
    with pytest.raises(InputError, match=message):
        with_smoothing(DEFENSES[row], *settings)
    with pytest.raises(InputError, match='needs a cross-entropy of the logits'):
        with_smoothing(with_he(DEFENSES['trades']), 0.1, 'all')

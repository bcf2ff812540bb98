"""Training that goes wrong is named once, with counts and a remedy, and healthy training is not."""

import pytest

from si_jax.training.symptoms import About, new_symptoms

NATURAL = 'validation/natural_accuracy'
ABOUT = About(epochs=40, held_out=200, classes=10, peak=0.1)


def run_of(*, pgd, trained, loss=None, about=ABOUT, **last):
    """What is said after each epoch, of accuracies by epoch."""
    lines, said = [], []
    for number, (accuracy, train) in enumerate(zip(pgd, trained, strict=True), 1):
        line = {'step': number, 'epoch': number, 'train/adv_accuracy': train}
        line['train/loss'] = 1.0 if loss is None else loss[number - 1]
        if accuracy is not None:
            line |= {f'validation/{kind}pgd_accuracy': accuracy for kind in ('', 'calibrated_')}
            line |= {'validation/predicted_classes': 9, 'validation/most_predicted_class': 3} | last
        if number == 1:
            line['train/start_loss'] = 2.3
        lines.append(line)
        found = new_symptoms(lines, about)
        if found:
            line['symptoms'] = ', '.join(found)
        said.append(found)
    return said


def test_healthy_training_is_not_named():
    # An epoch that dips, as high rates make it, is no robust overfitting.
    said = run_of(
        pgd=[0.1, 0.3, 0.45, 0.5, 0.35, 0.5, None, 0.52], trained=[0.1, 0.3, 0.4, 0.5, 0.55, 0.6, 0.6, 0.6]
    )
    assert not any(said)


def test_a_network_that_only_guesses_is_named_at_the_end():
    rates = [0.1] * 4
    about = ABOUT._replace(epochs=4)
    said = run_of(pgd=rates, trained=rates, loss=[1.9, 1.8, 1.7, 1.6], about=about, **{NATURAL: 0.105})
    assert [list(found) for found in said] == [[], [], [], ['near chance']]
    assert '21 of 200 held-out images right' in said[3]['near chance']
    assert not any(run_of(pgd=rates, trained=rates, loss=[1.9] * 4, about=about, **{NATURAL: 0.4}))


def test_one_class_for_every_image():
    said = run_of(pgd=[0.1] * 6, trained=[0.1] * 6, **{'validation/predicted_classes': 1})
    assert [list(found) for found in said] == [[], [], [], ['one class'], [], []]  # once, after a tenth of 40
    text = said[3]['one class']
    assert (
        'each of the 200 held-out images gets class 3' in text and '--config.schedule.peak (now 0.1)' in text
    )
    one = ABOUT._replace(classes=1)
    assert not any(run_of(pgd=[0.1] * 6, trained=[0.1] * 6, about=one, **{'validation/predicted_classes': 1}))


def test_a_loss_that_does_not_fall_below_its_start():
    losses = [2.5, 2.4, 2.4, 2.3, 2.3, 2.2]
    said = run_of(pgd=[0.1] * 6, trained=[0.1] * 6, loss=losses)
    assert [list(found) for found in said] == [[], [], [], ['loss not falling'], [], []]
    assert 'of epoch 4 is 2.3000, not below the 2.3000 of the first step' in said[3]['loss not falling']
    assert not any(run_of(pgd=[0.1] * 6, trained=[0.1] * 6, loss=[2.5, 2.4, 2.4, 2.2, 2.2, 2.2]))
    scheduled = ABOUT._replace(fixed_loss=False)
    assert not any(run_of(pgd=[0.1] * 6, trained=[0.1] * 6, loss=losses, about=scheduled))


def test_a_collapse_while_training_accuracy_rises():
    said = run_of(pgd=[0.1, 0.4, 0.6, 0.02, 0.0], trained=[0.1, 0.3, 0.5, 0.8, 0.9])
    assert [list(found) for found in said] == [[], [], [], ['catastrophic overfitting'], []]
    text = said[3]['catastrophic overfitting']
    assert 'leaves 4 of 200 held-out images right after epoch 4, and 120 after epoch 3' in text
    assert 'from 50.0% to 80.0%' in text and '--config.overfitting.drop=0.2' in text
    assert not any(run_of(pgd=[0.1, 0.4, 0.6, 0.02], trained=[0.1, 0.3, 0.5, 0.1]))  # training fell too
    blind = run_of(pgd=[0.0, 0.0, 0.0], trained=[0.3, 0.6, 0.7])  # there was nothing to fall from
    assert [list(found) for found in blind] == [[], ['catastrophic overfitting'], []]
    assert 'leaves 0 of 200 held-out' in blind[1]['catastrophic overfitting']
    few = ABOUT._replace(held_out=8)
    assert not any(run_of(pgd=[0.1, 0.4, 0.25], trained=[0.1, 0.3, 0.5], about=few))


@pytest.mark.parametrize('patience', [0, 5])
def test_a_gap_between_last_and_best(patience):
    about = ABOUT._replace(patience=patience)
    pgd = [0.1, 0.4, 0.6, 0.45, 0.42, 0.44, 0.4]
    said = run_of(pgd=pgd, trained=[0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9], about=about)
    assert [list(found) for found in said] == [[]] * 5 + [['robust overfitting'], []]
    text = said[5]['robust overfitting']
    assert '88 of 200' in text and '120 after epoch 3' in text and 'best checkpoint' in text
    assert ('--config.patience' in text) == (patience == 0)

"""Progress tells the time left, and stays out of the way."""

import io
import sys

import jax

from si_jax.runtime import progress as progress_module
from si_jax.runtime.devices import side_by_side
from si_jax.runtime.progress import done, part, passing, progress, showing, silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_one_line_with_the_time_left():
    terminal = Terminal()
    with progress(4, 'epoch 1/2', 'step', file=terminal) as bar:
        for step in range(4):
            bar.update()
            bar.set_postfix(loss=step / 2)
    text = terminal.getvalue()
    assert text.count('\n') == 1 and text.count('\r') > 2
    last = text.rstrip('\n').split('\r')[-1]
    assert 'epoch 1/2: 100%' in last and '4/4' in last and 'loss=1.5' in last and '00:00<00:00' in last


def test_progress_elsewhere_is_a_line_now_and_then(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress_module.time, 'monotonic', lambda: clock[0])
    log = io.StringIO()
    with progress(100, 'epoch 1/2', 'step', initial=50, seconds=10, file=log) as bar:
        for step in range(50):
            clock[0] += 0.5
            bar.set_postfix(loss=step / 3, note='x')
            bar.update()
    bar.close()
    assert log.getvalue().splitlines() == [
        'epoch 1/2: 70/100 steps, 2.00 steps/s, 00:15 left, loss=6.333, note=x',
        'epoch 1/2: 90/100 steps, 2.00 steps/s, 00:05 left, loss=13, note=x',
        'epoch 1/2: 100/100 steps, 2.00 steps/s, 00:25 in all, loss=16.33, note=x',
    ]


def test_slow_units_are_told_by_the_time_of_each(monkeypatch):
    clock, log = [0.0], io.StringIO()
    monkeypatch.setattr(progress_module.time, 'monotonic', lambda: clock[0])
    with progress(1, 'page', 'network', file=log) as bar:
        bar.update()
    assert log.getvalue().splitlines()[-1] == 'page: 1/1 network, 00:00 in all'
    with progress(3, 'page', 'network', file=log) as bar:
        for _ in range(3):
            clock[0] += 40
            bar.update()
    assert log.getvalue().splitlines()[-1] == 'page: 3/3 networks, 40.0 s a network, 02:00 in all'


def test_progress_without_total_or_steps(monkeypatch):
    monkeypatch.setattr(progress_module.time, 'monotonic', lambda: 5.0)
    log = io.StringIO()
    with progress(None, 'attack', 'image', seconds=0, file=log) as bar:
        bar.update(3)
    assert log.getvalue().splitlines() == ['attack: 3 images', 'attack: 3 images, 00:00 in all']


def test_work_that_need_not_be_done_says_nothing_about_the_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, 'monotonic', lambda: clock[0])
    log, terminal = io.StringIO(), Terminal()
    for file in (log, terminal):
        clock[0] = 0.0
        with showing(progress(1000, 'attacks', seconds=10, file=file)) as bar:
            bar.skip(500)  # broken before
            with part(250):
                for share in (0.2, 0.4, 0.4, 0.8):
                    clock[0] += 5
                    done(share)
            bar.set_postfix(attack='square')
            clock[0] += 10
            with part(250):
                done(1.0)
    # 100 of 500 units in 10 s; then the 50 units that the first part did not need are left out as well.
    assert log.getvalue().splitlines() == [
        'attacks: 20 %, 00:40 left',
        'attacks: 40 %, 00:30 left',
        'attacks: 99 %, finishing, attack=square',
        'attacks: 100 %, 00:30 in all, attack=square',
    ]
    last = terminal.getvalue().rstrip('\n').split('\r')[-1]
    assert 'attacks: 100%' in last and '450' not in last and 'attack=square' in last


def test_a_part_of_something_else_leaves_no_line(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, 'monotonic', lambda: clock[0])
    log = io.StringIO()
    with progress(4, 'held-out images', passing=True, file=log) as bar:
        bar.update()
    assert log.getvalue() == ''
    with progress(4, 'held-out images', passing=True, file=log) as bar:
        clock[0] += 40
        bar.update()
    assert log.getvalue() == 'held-out images: 25 %\n'
    done(0.5)  # nobody asked to see it
    with showing(silent()), part(3):
        done(0.5)
    monkeypatch.setattr(sys, 'stderr', log)
    for shown in (True, False):
        with passing(200, 'clean images', shown):
            clock[0] += 40
            done(0.5)
    assert log.getvalue().splitlines()[1:] == ['clean images: 50 %']


def test_threads_started_in_a_copy_of_the_context_see_the_progress():
    log = io.StringIO()
    one = jax.local_devices()[:1]
    with showing(progress(4, 'attacks', 'image', seconds=0, file=log)), part(4):
        side_by_side(lambda number: done(number / 4), range(1, 5), one)
    assert log.getvalue().splitlines()[-2].startswith('attacks: 4/4 image')


def test_what_compiles_says_nothing_about_the_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, 'monotonic', lambda: clock[0])
    log, terminal = io.StringIO(), Terminal()
    for file in (log, terminal):
        clock[0] = 0.0
        with progress(1000, 'attacks', seconds=0, file=file) as bar:
            for attack, compiles in (('pgd', 100), ('cw', 50)):
                bar.set_postfix(attack=attack)
                for seconds in (compiles, 1, 1):
                    clock[0] += seconds
                    bar.update(100)
            bar.pause()
            clock[0] += 500
            bar.update(400)
            clock[0] += 10  # what is left to do is no unit
    assert log.getvalue().splitlines() == [
        'attacks: 10 %, attack=pgd',
        'attacks: 20 %, 00:08 left, attack=pgd',
        'attacks: 30 %, 00:07 left, attack=pgd',
        'attacks: 40 %, 00:06 left, attack=cw',
        'attacks: 50 %, 00:05 left, attack=cw',
        'attacks: 60 %, 00:04 left, attack=cw',
        'attacks: 99 %, finishing, attack=cw',
        'attacks: 100 %, 11:04 in all, attack=cw',
    ]
    *shown, last = [text for text in terminal.getvalue().rstrip('\n').split('\r') if '%' in text]
    assert '<?' in shown[0] and not any('100%' in text and '00:00' in text.split('<')[1] for text in shown)
    assert '100%' in last and '<00:00' in last

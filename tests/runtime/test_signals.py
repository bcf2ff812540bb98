"""A signal stops a run between two steps."""

import os
import signal
import threading

import pytest

from si_jax.runtime.signals import InterruptGuard


@pytest.fixture(autouse=True)
def handlers():
    """Checks that every test leaves the handlers as they were."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_flag_and_says_so(number, capfd):
    with InterruptGuard() as guard:
        assert (guard.stop_requested, guard.name) == (False, None)
        os.kill(os.getpid(), number)
        assert (guard.stop_requested, guard.name) == (True, number.name)
    assert guard.stop_requested
    assert f'{number.name}: saving and stopping after this step' in capfd.readouterr().err


def test_the_second_interrupt_stops_at_once():
    with pytest.raises(KeyboardInterrupt), InterruptGuard() as guard:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.name == 'SIGTERM'
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail('the second SIGINT did nothing')


def test_old_handlers_come_back_after_an_error():
    calls = []
    old = signal.signal(signal.SIGTERM, lambda *_: calls.append('old'))
    try:
        with pytest.raises(ZeroDivisionError), InterruptGuard():
            raise ZeroDivisionError
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == ['old']
    finally:
        signal.signal(signal.SIGTERM, old)


def test_only_in_the_main_thread():
    errors = []

    def enter():
        try:
            with InterruptGuard():
                pass
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=enter, name='worker')
    thread.start()
    thread.join()
    assert len(errors) == 1 and "thread 'worker'" in errors[0]

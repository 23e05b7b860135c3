"""The roll call of a run's processes, here threads."""

import concurrent.futures
import contextlib
import socket
import time

import pytest

from unclip_jax.parallel.distributed import check_peers


@pytest.fixture
def address():
    with socket.socket() as s:
        s.bind(("", 0))
        return f"localhost:{s.getsockname()[1] - 1}"


def call(address, count, numbers, timeout):
    """What each of the numbers heard: None, or the error's text."""

    def one(number):
        try:
            return check_peers(address, count, number, timeout)
        except ValueError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(one, numbers))


def test_all_are_there(address):
    assert call(address, 3, [2, 0, 1], 20) == [None] * 3


def test_everyone_hears_who_is_missing(address):
    heard = call(address, 5, [0, 1, 3], 1.5)
    assert all("number 2, 4 did not start within 2 s" in text for text in heard)


def test_process_0_is_missing(address):
    (heard,) = call(address, 2, [1], 1.0)
    assert "number 0 did not start" in heard


def test_a_coordinator_without_a_port_is_refused():
    with pytest.raises(ValueError, match="'here': expected host:port"):
        check_peers("here", 2, 0, 1)


def test_strangers_do_not_keep_the_others_waiting(address):
    """A health check that connects and is silent, and one that speaks HTTP."""
    port = int(address.rpartition(":")[2]) + 1
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(check_peers, address, 2, 0, 20)
        strangers = []
        while len(strangers) < 8 and not first.done():
            with contextlib.suppress(ConnectionRefusedError):
                strangers.append(socket.create_connection(("localhost", port)))
        for i, text in enumerate((b"GET / HTTP/1.1\r\n", b"{}", b"7")):
            strangers[i].sendall(text)
        begin = time.monotonic()
        assert call(address, 2, [1], 20) == [None]
        assert first.result() is None
        assert time.monotonic() - begin < 5
        for stranger in strangers:
            stranger.close()

"""Which clients have stopped reading."""

from __future__ import annotations

from dataclasses import dataclass

from coe.server.commands._readers import READ_S, StuckReaders


@dataclass(eq=False)
class Transport:
    waiting: int

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        raise AssertionError("it only looks")


def test_a_client_that_takes_nothing_is_told_from_one_that_reads_slowly_and_one_that_has_read_all() -> None:
    stuck, slow, done = Transport(70_000), Transport(70_000), Transport(0)
    readers = StuckReaders()
    found = []
    for second in range(int(READ_S) + 1):
        slow.waiting -= 1
        found = readers.look([stuck, slow, done], float(second))
        assert second == READ_S or not found
    assert found == [stuck]


def test_a_client_that_goes_on_reading_begins_anew() -> None:
    client = Transport(100)
    readers = StuckReaders()
    assert not readers.look([client], 0.0)
    client.waiting = 0
    assert not readers.look([client], READ_S)
    client.waiting = 100
    assert not readers.look([client], READ_S + 1)
    assert not readers.look([client], 2 * READ_S)
    assert readers.look([client], 2 * READ_S + 1) == [client]

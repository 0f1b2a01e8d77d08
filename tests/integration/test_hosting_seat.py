"""The seat of the embedded worker: one holder on a host, free the moment it is gone, never mistaken for a stranger's file."""

from __future__ import annotations

import os
import stat
import tempfile

import pytest

from jobrunner.hosting.seat import Seat
from tests.support.trees import tree

KEY = "0123456789abcdef"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A temporary directory of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"jobrunner-{os.geteuid()}"


def test_one_holder_at_a_time(home):
    """A second one gets it only when the first gives it up; each application has its own."""
    first, second, other = Seat(KEY), Seat(KEY), Seat("other")
    assert first.take()
    assert first.take()
    assert not second.take()
    assert other.take()
    first.give_up()
    assert second.take()
    assert not first.take()
    assert (second.taken, first.taken) == (True, False)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for seat in (second, other):
        seat.give_up()


def test_a_killed_holder_leaves_it_at_once(home):
    """After kill -9 of the process that has it, it is free at once: no lease has to run out."""
    theirs = Seat(KEY)
    with tree(lambda inside: inside.say(theirs.take())) as holder:
        assert holder.hear() is True
        mine = Seat(KEY)
        assert not mine.take()
    assert mine.take()
    mine.give_up()


def test_a_forked_child_does_not_keep_it(home):
    """A child that closes its copy neither frees the seat nor holds it when its parent gives it up."""
    seat = Seat(KEY)
    assert seat.take()

    def forget(inside):
        seat.forget()
        inside.say(Seat(KEY).take())

    with tree(forget) as child:
        assert child.hear() is False
        seat.give_up()
        other = Seat(KEY)
        assert other.take()
        other.give_up()


def test_a_file_that_was_removed_is_no_seat(home):
    """Whoever cleans the temporary directory does not make two holders out of those who come later."""
    first = Seat(KEY)
    assert first.take()
    [file] = home.iterdir()
    before = file.stat().st_mtime_ns
    os.utime(file, ns=(0, 0))
    first.refresh(now=1e9)
    assert file.stat().st_mtime_ns >= before
    file.unlink()
    second, third = Seat(KEY), Seat(KEY)
    assert second.take()
    assert not third.take()
    first.give_up()
    second.give_up()


@pytest.mark.parametrize("kind", ["open", "a link", "a file"])
def test_a_directory_that_others_could_write_to_is_refused(home, tmp_path, kind):
    """What somebody else may have prepared is not used."""
    if kind == "open":
        home.mkdir()
        home.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        home.symlink_to(tmp_path / "theirs")
    else:
        home.touch()
    with pytest.raises(PermissionError, match="is not a private directory"):
        Seat(KEY).take()

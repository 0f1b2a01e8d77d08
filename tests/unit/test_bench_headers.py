"""What an adapter's header says is read whole, and a header that is wrong is told apart from one that is right."""

from __future__ import annotations

import pytest

from bench.environments import Absent, BadHeader, interpreter, peers, read

GOOD = """# /// script
# requires-python = ">=3.11"
# dependencies = ["one==1.0"]
#
# [tool.bench]
# title = "One"
# server = "redis"
# durability = "less"
# ///
"""


def written(tmp_path, text):
    """An adapter with that header."""
    directory = tmp_path / "one"
    directory.mkdir()
    file = directory / "adapter.py"
    file.write_text(text)
    return file


def test_a_header_is_read(tmp_path):
    """Its parts arrive, and it is a peer by being none of ours."""
    peer = read(written(tmp_path, GOOD))
    assert (peer.name, peer.title, peer.server, peer.requirements, peer.kind) == ("one", "One", "redis", ("one==1.0",), "peer")


@pytest.mark.parametrize(
    ("what", "instead", "message"),
    [
        ("# /// script", "# script", "no '# /// script' header"),
        ('# title = "One"\n', "", "lacks 'title'"),
        ("[tool.bench]", "[tool.bench", "no TOML"),
        ('"redis"', '"rabbitmq"', "expected one of postgresql, redis"),
        ("one==1.0", "one>=1.0", "not pinned: one>=1.0"),
    ],
)
def test_a_wrong_header_is_refused_with_what_is_wrong(tmp_path, what, instead, message):
    """The file and the fault are in the message."""
    with pytest.raises(BadHeader, match=r"adapter\.py") as caught:
        read(written(tmp_path, GOOD.replace(what, instead)))
    assert message in str(caught.value)


def test_every_peer_that_is_demanded_has_an_adapter():
    """Ours first, then the bare ones, then the peers, each with pinned requirements."""
    found = peers()
    assert list(found)[:3] == ["jobrunner", "bare", "pgbench"]
    assert {name for name, peer in found.items() if peer.requirements} == {
        "celery", "dramatiq", "huey", "oban", "pgqueuer", "procrastinate", "rq",
    }  # fmt: skip


def test_a_python_that_nobody_has_is_a_reason_to_be_absent():
    """The reason says which one is needed."""
    with pytest.raises(Absent, match=r"needs Python >=9\.9"):
        interpreter(">=9.9")

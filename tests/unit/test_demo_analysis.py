"""What the demonstration finds out about a Python file, and which files it finds."""

from __future__ import annotations

import os
import textwrap

import pytest

from jobrunner.demo import find_sources, spread
from jobrunner.demo.analysis import Function, Report, analyse


def complexity(body: str) -> int:
    """Of one function with this body."""
    report = analyse("def f(a=None, b=None):\n" + textwrap.indent(textwrap.dedent(body), "    "))
    assert report.worst is not None
    return report.worst.complexity


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 1", 1),
        ("if a:\n    return 1\nreturn 2", 2),
        ("if a:\n    pass\nelif b:\n    pass\nelse:\n    pass", 3),
        ("for i in a:\n    while b:\n        pass", 3),
        ("return a and b and a", 3),
        ("return 1 if a else 2", 2),
        ("return [i for i in a if i if b]", 4),
        ("try:\n    a()\nexcept ValueError:\n    pass\nexcept KeyError:\n    pass", 3),
        ("match a:\n    case 1:\n        pass\n    case _:\n        pass", 3),
        ("with a:\n    assert b", 1),
        ("return lambda x: x or 1", 2),
        ("def g():\n    if a:\n        pass\n    if b:\n        pass", 3),  # the worst is g; f itself has 1
    ],
)
def test_ways_through_a_function(body, expected):
    """Each branch is one more way through the function that it stands in."""
    assert complexity(body) == expected


def test_report_of_a_module():
    """Lines, functions and classes are counted at every depth, and the worst function is named by where it stands."""
    source = textwrap.dedent(
        """\
        import os
        class Outer:
            class Inner:
                async def method(self):
                    async for x in self:
                        pass
            def other(self): return 1
        def free():
            def nested(a): return a or 1 or 2
        """
    )
    assert analyse(source) == Report(lines=9, functions=4, classes=2, complexity=7, worst=Function("free.nested", 9, 3))


def test_empty_module():
    """A file without a function has no worst one."""
    assert analyse("") == Report(0, 0, 0, 0, None)
    assert analyse("x = 1").lines == 1


def test_deep_code_is_no_trouble():
    """Code that nests deeper than a recursive visitor could follow is counted all the same."""
    assert complexity("return " + " + ".join(["a"] * 900)) == 1


def test_what_is_found(tmp_path):
    """Python files at any depth, sorted, each once; other files and names that JSON cannot hold are left out."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z.py", "b/y.py", "b/c/x.py", "b/notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "again").symlink_to(tmp_path / "b")
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.py", os.O_CREAT))
    top = os.path.realpath(tmp_path)
    assert find_sources(tmp_path) == [f"{top}/b/c/x.py", f"{top}/b/y.py", f"{top}/z.py"]


def test_the_standard_library_is_found():
    """Without a directory it is what this Python has installed."""
    assert os.path.realpath(textwrap.__file__) in find_sources()


@pytest.mark.parametrize(("count", "limit", "expected"), [(3, 5, [0, 1, 2]), (10, 5, [0, 2, 4, 6, 8]), (7, 3, [0, 2, 4]), (0, 3, [])])
def test_spread(count, limit, expected):
    """A limit takes from all over the list, each element at most once, the same ones each time."""
    assert spread([str(number) for number in range(count)], limit) == [str(number) for number in expected]

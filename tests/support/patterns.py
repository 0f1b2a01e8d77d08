"""Owns patterns and names of events for tests: how to make some, and the plainest way to say what fits."""

from __future__ import annotations

from hypothesis import strategies as st

# Few words, so that names and patterns meet; some of them would mean something in a regular expression.
_WORDS = st.sampled_from(["a", "b", "ab", "é", "a-b", "(a)", "a|b", "$", "^a", "[b]", "a{2}", "\\d", "a+", "?", "'", '"', "%", "_"])
names = st.lists(_WORDS, min_size=1, max_size=5).map(".".join)
patterns = st.lists(st.one_of(_WORDS, st.sampled_from(["*", "#"])), min_size=1, max_size=6).map(".".join)


def reference(pattern: list[str], words: list[str]) -> bool:
    """Whether a pattern, as a list of words, fits a name: word by word, and each hash with any number of them."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(reference(pattern[1:], words[taken:]) for taken in range(len(words) + 1))
    return bool(words) and pattern[0] in {"*", words[0]} and reference(pattern[1:], words[1:])

from __future__ import annotations

from tatok_pipe.seeds import hash_seed, hash_words


def test_words_depend_on_every_part_and_never_change() -> None:
    assert hash_words(0, "a", 1) == (
        7135187249400549780,
        8724515474440293999,
        3606096231202615025,
        17467132089455290410,
    )
    others = {hash_words(0, "a", 1), hash_words(1, "a", 1), hash_words(0, "b", 1), hash_words(0, "a", 2)}
    others |= {hash_words("0", "a", 1), hash_words(0, "a1"), hash_words(0, "a\ud800", 1)}
    assert len(others) == 7
    assert all(0 <= word < 1 << 64 for word in hash_words("x"))


def test_a_seed_never_changes() -> None:
    assert hash_seed(1, 2) == 7764949442709860949

"""The error tree is the one that its docstring draws, with the exit statuses it gives."""

from __future__ import annotations

import re

from genmote import errors


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """Name → (parent's name, exit status where one is written) from the picture in the docstring."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([ │├└─]*)([A-Z]\w*Error)\b(?:\s+exit (\d+))?", line)
        if found is None:
            continue
        depth = len(found[1])
        above = [(d, name) for d, name in above if d < depth]
        tree[found[2]] = (above[-1][1] if above else None, int(found[3]) if found[3] else None)
        above.append((depth, found[2]))
    return tree


def test_the_tree_is_as_drawn() -> None:
    real = {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.GenmoteError)}
    picture = drawn()
    assert set(picture) == set(real)
    for name, (parent, status) in picture.items():
        wanted = Exception if parent is None else real[parent]
        assert real[name].__bases__ == (wanted,), name
        if status is not None:
            assert real[name].exit_status == status, name


def test_a_users_mistake_ends_with_status_2() -> None:
    assert errors.UserError.exit_status == errors.PullError.exit_status == 2
    assert errors.GenmoteError.exit_status == 1

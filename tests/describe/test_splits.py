"""Groups stay whole, shares are met as nearly as they can be, and the same groups fall the same way everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from genmote.describe import splits
from genmote.errors import SpecError


@dataclass(frozen=True)
class Item:
    group: str
    fold: int = 0


ITEMS = [Item(f"patient {n % 50}", n % 10) for n in range(200)]


def test_groups_stay_whole_and_shares_are_met() -> None:
    parts = splits.by_group(ITEMS)
    groups = [{one.group for one in part} for part in parts.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert sum(map(len, parts.values())) == 200
    assert {name: len(part) for name, part in parts.items()} == pytest.approx(
        {"train": 140, "choose": 20, "test": 40}, abs=4
    )


def test_the_same_everywhere_and_another_with_another_seed() -> None:
    assert splits.by_group(ITEMS) == splits.by_group(ITEMS)
    assert {one.group for one in splits.by_group(ITEMS)["choose"]} == {
        *("patient 34", "patient 36", "patient 42", "patient 44", "patient 5")
    }
    assert splits.by_group(ITEMS, seed=1) != splits.by_group(ITEMS)


def test_of_few_groups_each_part_has_one() -> None:
    parts = splits.by_group([Item("a"), Item("b"), Item("c")] * 3)
    assert [len({one.group for one in part}) for part in parts.values()] == [1, 1, 1]
    with pytest.raises(SpecError, match="2 groups for 3 parts: wanted at least one group for each part"):
        splits.by_group([Item("a"), Item("b")])


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_shares_that_do_not_add_up(shares: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="wanted numbers above 0 that add up to 1"):
        splits.by_group(ITEMS, shares)


def test_by_fold() -> None:
    parts = splits.by_fold([Item(str(n), n % 10 + 1) for n in range(50)], (9, 10), (8,))
    assert {name: len(part) for name, part in parts.items()} == {"train": 35, "choose": 5, "test": 10}
    with pytest.raises(SpecError, match="group 'a' is in train and in test: split by group instead"):
        splits.by_fold([Item("a", 1), Item("a", 9)], (9,))

"""Champion and challenger as numbered records."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drivetrain.aliases import current, history, name_next
from drivetrain.layout import Layout
from drivetrain.store import Store


def test_the_highest_record_counts_and_the_history_stays(tmp_path: Path) -> None:
    store, layout = Store(), Layout(str(tmp_path))
    assert current(store, layout, "s", "champion") is None
    for model in ("aaa", "bbb", "aaa"):
        name_next(store, layout, "s", "champion", model_id=model, sha256=model * 21, reason="promoted")
    found = current(store, layout, "s", "champion")
    assert found and (found.number, found.model_id) == (3, "aaa")
    assert [each.model_id for each in history(store, layout, "s", "champion")] == ["aaa", "bbb", "aaa"]
    assert current(store, layout, "s", "challenger") is None


def test_a_challenger_can_be_taken_away(tmp_path: Path) -> None:
    store, layout = Store(), Layout(str(tmp_path))
    name_next(store, layout, "s", "challenger", model_id="aaa", sha256="a" * 64, reason="shadow", scope="0.1")
    name_next(store, layout, "s", "challenger", model_id=None, sha256=None, reason="withdrawn")
    assert current(store, layout, "s", "challenger") is None
    assert history(store, layout, "s", "challenger")[0].scope == "0.1"


def test_of_many_at_once_each_gets_a_record_of_its_own(tmp_path: Path) -> None:
    store, layout = Store(), Layout(str(tmp_path))

    def promote(number: int) -> int:
        return name_next(
            store, layout, "s", "champion", model_id=f"m{number}", sha256="a" * 64, reason="promoted"
        ).number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(promote, range(8)))
    assert sorted(numbers) == list(range(1, 9))
    assert len({each.model_id for each in history(store, layout, "s", "champion")}) == 8

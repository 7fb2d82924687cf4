"""Tasks on real Ray actors: each is done, dead actors are replaced, and errors come back as they are."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from drivetrain import cluster, pool
from drivetrain.errors import DeviceError, LearnerError, RunError


@dataclass
class Doubling:
    """Doubles its task; says by a file in ``folder`` that it tried."""

    folder: Path
    dies_on: tuple[int, ...] = ()
    dies_times: int = 1
    refuses: int | None = None
    dies_at: tuple[tuple[int, int], ...] = ()
    unlucky_at: tuple[tuple[int, int], ...] = ()
    loses_its_device_on: int | None = None
    looks_ahead: bool = False

    def __post_init__(self) -> None:
        self._broken = False

    def run(self, task: int, upcoming: int | None) -> int:
        tried = len(list(self.folder.glob(f"{task}-*")))
        (self.folder / f"{task}-{tried}").touch()
        if task in self.dies_on and tried < self.dies_times:
            os._exit(1)
        if self._broken or (task == self.loses_its_device_on and not tried):
            self._broken = True
            raise DeviceError("The GPU failed: an illegal memory access")
        if task == self.refuses:
            raise LearnerError("this learner can't be served")
        if any(task == of for of, _ in self.dies_at + self.unlucky_at):
            os._exit(1)
        if self.looks_ahead and any(upcoming == of for of, _ in self.dies_at):
            (self.folder / f"{upcoming}-ahead-{tried}").touch()
            os._exit(1)
        return 2 * task

    def steps(self, task: int, first: int | None, without: frozenset[int]) -> Iterator[tuple[int | None, int | None]]:
        """Ten steps. Dies at those of ``dies_at``, and once at those of ``unlucky_at``."""
        if task in (*self.dies_on, self.loses_its_device_on):
            yield None, self.run(task, None)
            return
        for step in sorted(set(range(10)) - without, key=lambda step: (step != first, step)):
            yield step, None
            tried = self.folder / f"{task}.{step}.{len(list(self.folder.glob(f'{task}.{step}.*')))}"
            tried.touch()
            if (task, step) in self.dies_at or ((task, step) in self.unlucky_at and tried.suffix == ".0"):
                os._exit(1)
        yield None, 2 * task - len(without)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Actors import this very file.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with cluster.connected(None, 2):
            yield


def test_without_actors_tasks_run_here_in_order(tmp_path: Path) -> None:
    assert list(pool.run_tasks(partial(Doubling, tmp_path), [3, 1, 2], actors=0)) == [(3, 6), (1, 2), (2, 4)]


@pytest.mark.slow
def test_every_task_is_done_once(ray: None, tmp_path: Path) -> None:
    done = list(pool.run_tasks(partial(Doubling, tmp_path), range(20), actors=2))
    assert sorted(done) == [(i, 2 * i) for i in range(20)]
    assert len(list(tmp_path.iterdir())) == 20


def test_each_actor_is_told_what_it_gets_next() -> None:
    """A wrong guess would fetch images twice."""
    queue = pool._Queue(range(5))
    assert (queue.take("a"), queue.take("b")) == ((0, 1), (2, 3))
    assert queue.take("b") == (3, 4)
    assert queue.take("a") == (1, None), "all that is left is set apart for b"


def test_no_actor_idles_while_another_has_a_task_set_apart() -> None:
    queue = pool._Queue(range(3))
    assert (queue.take("a"), queue.take("b")) == ((0, 1), (2, None))
    assert queue.take("b") == (1, None)
    assert queue.take("a") is None and queue.take("b") is None


def test_what_a_dead_actor_would_have_got_is_not_lost() -> None:
    queue = pool._Queue(range(3))
    assert queue.take("a") == (0, 1)
    queue.give_back("a")
    assert queue.take("b") == (1, 2)


@pytest.mark.slow
def test_no_task_is_no_actor(ray: None, tmp_path: Path) -> None:
    assert list(pool.run_tasks(partial(Doubling, tmp_path), [], actors=2)) == []


@pytest.mark.slow
def test_a_dead_actor_is_replaced_and_its_task_done(ray: None, tmp_path: Path) -> None:
    make = partial(Doubling, tmp_path, dies_on=(3, 5), dies_times=2)
    done = list(pool.run_tasks(make, range(8), actors=2))
    assert sorted(done) == [(i, 2 * i) for i in range(8)]
    assert len(list(tmp_path.glob("3-*"))) == 3


@pytest.mark.slow
def test_a_task_that_always_kills_its_actor_ends_the_run_with_a_plain_message(ray: None, tmp_path: Path) -> None:
    make = partial(Doubling, tmp_path, dies_on=(2,), dies_times=99)
    with pytest.raises(RunError, match="Shard 2 ended its actor 3 times"):
        list(pool.run_tasks(make, range(4), actors=2))
    assert len(list(tmp_path.glob("2-*"))) == pool.MAX_ATTEMPTS


@pytest.mark.slow
def test_steps_that_end_their_actor_twice_are_left_out_and_no_others(
    ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 4 of task 1 and the steps 0 and 9 of task 2 always end their actor; step 7 of task 3 was unlucky once."""
    make = partial(Doubling, tmp_path, dies_at=((1, 4), (2, 0), (2, 9)), unlucky_at=((3, 7),))
    done = dict(pool.run_tasks(make, range(5), actors=1))
    assert done == {0: 0, 1: 2 - 1, 2: 4 - 2, 3: 6 - 0, 4: 8}
    tries = {fatal: len(list(tmp_path.glob(f"{fatal}.*"))) for fatal in ("1.4", "2.0", "2.9")}
    # Task 1 once more before, with all its steps. Task 2 came after it, so that it was done step by step at once.
    assert tries == dict.fromkeys(tries, 2)
    deaths = capsys.readouterr().err.count("An actor died")
    assert deaths == (1 + 2) + (2 + 2) + (1 + 1)
    print(f"3 fatal steps found by {deaths - 2} dead actors; each was tried 3 times at most")


@pytest.mark.slow
def test_a_step_that_ends_who_looks_ahead_at_it_takes_no_more_actors_than_another(
    ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever looks at task 4 ahead dies of its step 7. With two actors an idle one might have taken task 4 over."""
    make = partial(Doubling, tmp_path, dies_at=((4, 7),), looks_ahead=True)
    done = dict(pool.run_tasks(make, range(9), actors=1))
    assert done == {task: 2 * task - (task == 4) for task in range(9)}
    tries = [*tmp_path.glob("4.7.*"), *tmp_path.glob("4-*")]
    assert len(tries) == 3 == capsys.readouterr().err.count("An actor died"), tries


@pytest.mark.slow
def test_a_machine_that_ends_actors_anywhere_is_not_taken_for_bad_images(ray: None, tmp_path: Path) -> None:
    make = partial(Doubling, tmp_path, unlucky_at=tuple((2, step) for step in range(10)))
    with pytest.raises(RunError, match="Shard 2 ended its actor 3 times"):
        list(pool.run_tasks(make, range(4), actors=1))


@pytest.mark.slow
def test_an_error_of_a_worker_comes_back_as_itself_and_is_not_retried(ray: None, tmp_path: Path) -> None:
    with pytest.raises(LearnerError, match=r"^this learner can't be served$"):
        list(pool.run_tasks(partial(Doubling, tmp_path, refuses=1), [1], actors=1))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_an_actor_that_lost_its_device_is_replaced_and_gets_no_other_task(
    ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would fail all that it is given: each task is tried once, but for the one that the device was lost on."""
    done = list(pool.run_tasks(partial(Doubling, tmp_path, loses_its_device_on=1), range(6), actors=1))
    assert sorted(done) == [(i, 2 * i) for i in range(6)]
    assert len(list(tmp_path.iterdir())) == 6 + 1
    assert "An actor died on shard 1 (The GPU failed: an illegal memory access)" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_that_cannot_import_the_code_are_told_in_one_line(ray: None) -> None:
    class OnThisSideOnly:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return __import__, ("a_module_that_no_node_has",)

    with pytest.raises(RunError, match="a_module_that_no_node_has"):
        list(pool.run_tasks(OnThisSideOnly(), [1], actors=1))  # type: ignore[arg-type]

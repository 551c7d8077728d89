"""How many threads matrix products have, where several threads of the process compute."""

from __future__ import annotations

import threading

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from distbp import InputError
from distbp.train.threads import blas_threads


def now():
    """Return how many threads products have at the moment."""
    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")


@pytest.fixture(autouse=True)
def two():
    with threadpool_limits(2, "blas"):
        yield
        assert now() == 2


class Other:
    """Another thread of this process, which stays inside until it is told to leave."""

    def __init__(self, n):
        self.is_inside, self.may_leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.stay, args=[n], daemon=True)
        self.thread.start()

    def stay(self, n):
        with blas_threads(n):
            self.seen = now()
            self.is_inside.set()
            assert self.may_leave.wait(60)

    def leave(self):
        self.may_leave.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_who_leaves_first_does_not_change_the_threads_of_the_other():
    """A prediction that began before a training, and ends while that goes on."""
    other = Other(1)
    assert other.is_inside.wait(60)
    with blas_threads(1):
        other.leave()
        assert now() == 1


def test_who_wants_another_number_waits():
    with blas_threads(1):
        other = Other(2)
        assert not other.is_inside.wait(0.2)
        assert now() == 1
    assert other.is_inside.wait(60)
    assert other.seen == 2
    other.leave()


def test_a_prediction_inside_of_a_training_has_its_own():
    with blas_threads(1):
        with blas_threads(2):
            assert now() == 2
        assert now() == 1


def test_two_that_would_wait_for_each_other_are_told():
    said, is_inside = [], threading.Barrier(2)

    def nest():
        try:
            with blas_threads(1):
                is_inside.wait(60)
                with blas_threads(2):
                    said.append("through")
        except InputError as error:
            said.append(str(error))

    threads = [threading.Thread(target=nest, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(said) == [said[0], "through"]
    assert "two that wait for each other" in said[0]

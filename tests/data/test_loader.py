"""The loader: one step's samples whatever the ranks, any start, and failures that reach the training thread."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from data.alphabet import RINALMO
from data.errors import DataError
from data.loader import StepPlanner, prefetched
from data.order import Order
from pretrain.objectives.mlm import MLM, MLMConfig

GLOBAL_BATCH = 24
MAX_TOKENS = 64


class Letters:
    """A corpus in memory; every sequence occurs once."""

    def __init__(self, count: int = 150):
        generator = np.random.default_rng(0)
        sizes = generator.integers(8, 90, count)
        self.sequences = [generator.choice(np.frombuffer(b"ACGU", np.uint8), size) for size in sizes]
        self.lengths = sizes.astype(np.uint32)

    def letters(self, ids):
        return [self.sequences[i] for i in ids]


CORPUS = Letters()


def planner(rank: int = 0, ranks: int = 1, budget: int = 4096, seed: int = 3, **changes) -> StepPlanner:
    objective = MLM(MLMConfig(max_tokens=MAX_TOKENS))
    order = Order(np.array([100, 50]), seed, GLOBAL_BATCH)
    if "collate" in changes:
        objective.collate = changes["collate"]
    return StepPlanner(changes.get("corpus", CORPUS), order, objective, budget, rank=rank, ranks=ranks)


def rows(batch) -> list[tuple]:
    """What a model would see of each sequence and be asked for, without padding rows for empty ranks."""
    found, ends = [], batch.cu_seqlens.tolist()
    for i, (start, stop) in enumerate(pairwise(ends)):
        mine = batch.target_sample == i
        tokens = tuple(batch.tokens[start:stop].tolist())
        places = tuple((batch.target_index[mine] - start).tolist())
        if tokens != (0, 2):
            found.append((tokens, places, tuple(batch.targets[mine].tolist()), tuple(batch.target_nucleotide[mine])))
    return found


def all_rows(number: int, ranks: int, budget: int, **changes) -> list[tuple]:
    steps = [planner(rank, ranks, budget, **changes).step(number) for rank in range(ranks)]
    assert len({len(step.micro_batches) for step in steps}) == 1
    return sorted(row for step in steps for batch in step.micro_batches for row in rows(batch))


@pytest.mark.parametrize("budget", [MAX_TOKENS, 300])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_and_budget_change_neither_the_samples_nor_their_masks(ranks, budget):
    for number in (0, 6, 40):  # step 6 spans two epochs
        assert all_rows(number, ranks, budget) == all_rows(number, 1, 100_000)


def test_more_ranks_than_samples_still_see_every_sample_once():
    assert all_rows(0, GLOBAL_BATCH + 3, 300) == all_rows(0, 1, 100_000)


def test_the_rows_of_a_step_are_the_samples_that_the_order_names():
    _, ids = planner().order.step(2)
    whole = [i for i in ids if len(CORPUS.sequences[i]) + 2 <= MAX_TOKENS]
    expected = sorted(tuple(RINALMO.encode_row(CORPUS.sequences[i]).tolist()) for i in whole)
    found = []
    for tokens, places, targets, _ in all_rows(2, 1, 100_000):
        original = np.array(tokens)
        original[list(places)] = targets
        found.append(tuple(original.tolist()))
    assert set(expected) <= set(found)
    assert len(found) == GLOBAL_BATCH


def test_the_same_sample_is_masked_afresh_in_every_epoch_and_seed():
    assert not set(all_rows(0, 1, 4096)) & set(all_rows(0, 1, 4096, seed=4))
    first, second = ({row for n in steps for row in all_rows(n, 1, 4096)} for steps in (range(6), range(7, 13)))
    assert len(first & second) < 5


def test_counts_are_those_of_the_whole_step_on_every_rank():
    _, ids = planner().order.step(5)
    sizes = [len(CORPUS.sequences[i]) for i in ids]
    for rank in range(3):
        step = planner(rank, 3).step(5)
        assert step.number == 5
        assert step.sequences == GLOBAL_BATCH
        assert step.tokens == sum(min(size + 2, MAX_TOKENS) for size in sizes)
        assert step.nucleotides == sum(min(size, MAX_TOKENS) for size in sizes)
        assert step.epoch == pytest.approx(6 * GLOBAL_BATCH / 150)


def test_a_loader_started_at_any_step_continues_as_one_that_ran_through():
    through = [[rows(batch) for batch in step.micro_batches] for step in prefetched(planner(), 0, 9)]
    later = [[rows(batch) for batch in step.micro_batches] for step in prefetched(planner(), 4, 9)]
    assert len(through) == 9
    assert later == through[4:]


def test_steps_come_in_order_and_end_with_the_budget():
    assert [step.number for step in prefetched(planner(), 3, 11, ahead=1)] == list(range(3, 11))
    assert list(prefetched(planner(), 5, 5)) == []


class Failing(Letters):
    def __init__(self, error: BaseException, after: int):
        super().__init__()
        self.error, self.left = error, after

    def letters(self, ids):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().letters(ids)


@pytest.mark.parametrize("error", [DataError("block 3 does not match its checksum"), MemoryError()])
def test_a_failure_to_read_is_raised_in_the_consumer_after_the_good_steps(error):
    steps = prefetched(planner(corpus=Failing(error, after=2)), 0, 10)
    assert [next(steps).number, next(steps).number] == [0, 1]
    with pytest.raises(type(error)) as caught:
        next(steps)
    assert caught.value is error
    assert not loaders()


def test_a_failure_in_collate_is_raised_in_the_consumer():
    def collate(letters, keys, moment):
        raise RuntimeError("collate")

    with pytest.raises(RuntimeError, match="collate"):
        next(prefetched(planner(collate=collate), 0, 10))


def loaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_a_consumer_that_leaves_early_ends_the_thread_even_while_its_queue_is_full():
    steps = prefetched(planner(), 0, 10_000, ahead=2)
    next(steps)
    time.sleep(0.1)  # let it fill the queue and wait
    assert loaders()
    steps.close()
    assert not loaders()


def test_the_thread_works_only_so_many_steps_ahead():
    asked = []

    def collate(letters, keys, moment):
        asked.append(len(letters))
        return None

    steps = prefetched(planner(collate=collate, budget=100_000), 0, 1000, ahead=3)
    next(steps)
    time.sleep(0.3)
    assert len(asked) <= 1 + 3 + 1  # one taken, three waiting, one in the thread's hand
    steps.close()

"""The next batch is copied while this one is worked on: which, in what order, and how many lie on the device."""

import weakref
from collections.abc import Iterator

import torch

from roofscale.data.sample import Batch
from roofscale.train.prefetch import BATCHES_ON_GPU, CudaPrefetcher, prefetch


def batch(number: int) -> Batch:
    image_NCHW = torch.full((1, 3, 2, 2), number, dtype=torch.uint8)
    return Batch(image_NCHW, image_NCHW[:, :1], torch.ones(1, 1, dtype=torch.bool), [str(number)])


class Loader:
    """Five batches; the third position is one that was broken throughout, and so is skipped."""

    position = 0

    def __iter__(self) -> Iterator[Batch]:
        for number in range(5):
            self.position += 2 if number == 2 else 1
            yield batch(number)


class Side(CudaPrefetcher):
    """A side stream that only writes down what is asked of it, and how many of its copies are alive."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.most = 0
        self._copies: list[weakref.ref[torch.Tensor]] = []

    def begin(self, batch: Batch) -> Batch:
        self.asked.append(f"begin {batch.ids[0]}")
        copied = Batch(*(tensor.clone() for tensor in batch[:-1]), batch.ids)
        self._copies.append(weakref.ref(copied.image_NCHW))
        self.most = max(self.most, sum(copy() is not None for copy in self._copies))
        return copied

    def finish(self, batch: Batch) -> None:
        self.asked.append(f"finish {batch.ids[0]}")


def test_without_a_side_stream_the_batches_are_those_of_the_loader() -> None:
    found = [(one.batch is one.host, one.host.ids, one.position) for one in prefetch(Loader(), None)]
    assert found == [(True, [str(number)], number + 1 + (number >= 2)) for number in range(5)]


def test_a_copy_begins_before_the_batch_before_it_is_worked_on_and_is_waited_for_when_its_turn_comes() -> None:
    side = Side()
    for one in prefetch(Loader(), side):
        side.asked.append(f"work {one.batch.ids[0]}")
        assert torch.equal(one.batch.image_NCHW, one.host.image_NCHW)
        assert one.batch.image_NCHW is not one.host.image_NCHW
    assert side.asked[:7] == ["begin 0", "finish 0", "begin 1", "work 0", "finish 1", "begin 2", "work 1"]
    assert side.asked[-4:] == ["begin 4", "work 3", "finish 4", "work 4"]


def test_each_batch_carries_its_own_position_and_not_that_of_the_one_read_ahead() -> None:
    assert [one.position for one in prefetch(Loader(), Side())] == [1, 2, 4, 5, 6]


def test_no_batch_is_lost_where_there_is_one_or_none() -> None:
    class One(Loader):
        def __iter__(self) -> Iterator[Batch]:
            yield batch(7)

    class Empty(Loader):
        def __iter__(self) -> Iterator[Batch]:
            return iter(())

    assert [one.batch.ids for one in prefetch(One(), Side())] == [["7"]]
    assert list(prefetch(Empty(), Side())) == []


def test_no_more_lie_on_the_device_than_a_forecast_counts() -> None:
    side = Side()
    for _number, _one in enumerate(prefetch(Loader(), side)):  # as the training loop goes over them
        pass
    assert side.most == BATCHES_ON_GPU

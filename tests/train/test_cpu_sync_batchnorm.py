"""Batch normalisation over several processes, here threads, against torch's own over the whole batch."""

import copy
import threading
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from roofscale.train.cpu_sync_batchnorm import install


class Threads:
    """Gathers tensors from threads as a process group does from processes, in an order that does not change."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count)
        self.held: list[torch.Tensor] = [torch.zeros(0)] * count

    def gather(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        self.held[rank] = tensor.detach().clone()
        self.barrier.wait(30)
        found = torch.stack(self.held)
        self.barrier.wait(30)
        return found


def in_threads(norm: nn.Module, parts: Sequence[torch.Tensor]) -> list[nn.Module]:
    """Forward and backward of the same module on each part, all at once."""
    threads, norms = Threads(len(parts)), [copy.deepcopy(norm) for _ in parts]

    def train(rank: int) -> None:
        install(norms[rank], lambda tensor: threads.gather(rank, tensor))
        loss_of(norms[rank](parts[rank])).backward()

    running = [threading.Thread(target=train, args=(rank,)) for rank in range(len(parts))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    return norms


def loss_of(y: torch.Tensor) -> torch.Tensor:
    return (y.float() ** 3).sum()


@pytest.mark.parametrize("sizes", [(3, 3), (4, 2), (6, 0), (3, 2, 1)])
def test_parts_of_a_batch_are_normalised_as_the_whole_is(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    nn.init.normal_(norm.weight)
    whole = (torch.randn(6, 5, 4, 3) * 3 + 2).requires_grad_()
    parts = [part.detach().clone().requires_grad_() for part in whole.split(sizes)]
    norms = in_threads(norm, parts)
    loss_of(norm(whole)).backward()
    assert whole.grad is not None
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), whole.grad, rtol=1e-4, atol=1e-4)
    summed = torch.stack([one.weight.grad for one in norms]).sum(0)
    torch.testing.assert_close(summed, norm.weight.grad, rtol=1e-4, atol=1e-4)
    for one in norms:
        torch.testing.assert_close(one.running_mean, norm.running_mean)
        torch.testing.assert_close(one.running_var, norm.running_var)


def test_statistics_stay_float32_in_lower_precision() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    x = (torch.randn(4, 3, 8, 8) + 100).bfloat16()
    (one, _) = in_threads(norm, [x[:2].requires_grad_(), x[2:].requires_grad_()])
    torch.testing.assert_close(one.running_mean, 0.1 * x.float().mean((0, 2, 3)), rtol=1e-5, atol=0)


def test_evaluation_asks_nobody() -> None:
    norm = nn.BatchNorm2d(3).eval()
    install(norm, lambda tensor: pytest.fail("it asked"))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(norm(x), nn.BatchNorm2d(3).eval()(x))

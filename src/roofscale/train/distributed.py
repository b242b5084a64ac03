"""The processes that train one run together, one a GPU, on one machine or several; for a single process, no more than
names.

torchrun starts them and tells each who it is (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Each takes its
samples of every batch; gradients are averaged by DistributedDataParallel. All else that they have to agree on (counts,
losses, when to stop) goes over gloo, from CPU to CPU. What is asked of all here must be asked by all, in one order.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.train import cpu_sync_batchnorm

T = TypeVar("T")

# Others wait at the most while rank 0 writes a checkpoint, and while one validates a few samples more than the others.
# A process that dies is noticed at once; this is for one that hangs.
_TIMEOUT = datetime.timedelta(minutes=30)
_RANK_SEEDS = 7_368_787  # a prime: the seeds of a rank's steps are no other rank's


def init_process_group(config: RunConfig) -> None:
    """Join the processes that torchrun has started; nothing where the config wants one.

    Raises:
        ConfigError: there are more or fewer of them than the config says, or more than this machine has GPUs.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != config.world_size:
        raise ConfigError(
            f"processes={config.processes} on instance_count={config.instance_count} machines make "
            f"{config.world_size}, "
            f"and {started} were started; start the run by 'roofscale train', or as many by torchrun."
        )
    if started == 1:
        return
    if torch.cuda.is_available():
        if config.processes > torch.cuda.device_count():
            raise ConfigError(
                f"processes={config.processes}: this machine has {torch.cuda.device_count()} GPU, and each process "
                "needs one; lower processes, or choose a compute with more."
            )
        torch.cuda.set_device(_local_rank())
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backends, timeout=_TIMEOUT)


def destroy_process_group() -> None:
    """Wait for the others to be done, and part; for those only who end together, as after an error nobody answers."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 is the one that writes. Known before they have joined."""
    return int(os.environ.get("RANK", 0))


def is_local_rank0() -> bool:
    """Whether this is the first process of its machine."""
    return _local_rank() == 0


def step_seed(seed: int) -> int:
    """The seed of a step in this process, so that dropout does not drop the same in all of them."""
    return seed + _RANK_SEEDS * (rank() if world_size() > 1 else 0)


def all_gather(value: T) -> list[T]:
    """What each process says, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_mean(value: torch.Tensor) -> torch.Tensor:
    """The mean over the processes, the same to the last bit in all of them; float64 where they are several."""
    if world_size() == 1:
        return value
    total = value.to("cpu", torch.float64)
    dist.all_reduce(total)
    return (total / world_size()).to(value.device)


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """What rank 0 makes of it; the others take it over."""
    if world_size() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(made)
    value: T = made[0]
    return value


def local_rank0_first(make: Callable[[], T]) -> T:
    """Call it in one process of each machine first, then in the others, which find the files that it has made."""
    if world_size() == 1:
        return make()
    if not is_local_rank0():
        dist.barrier()
        return make()
    made = make()
    dist.barrier()
    return made


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """The model, with batch normalisation over the samples of all processes, as a single one would have them."""
    if world_size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        from timm.layers.norm_act import convert_sync_batchnorm  # torch's does not know timm's, with an activation

        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    cpu_sync_batchnorm.install(model, cpu_sync_batchnorm.all_gather)
    return model


def wrap_ddp(model: nn.Module) -> nn.Module:
    """What to train in the model's place: it averages the gradients over the processes.

    ``gradient_as_bucket_view`` saves a second copy of the gradients. ``find_unused_parameters`` keeps the order in
    which they are exchanged: torch would otherwise settle a new one after the first step of a process, and sums over
    three or more would round differently in a resumed run. No buffer differs, as statistics are global.
    """
    if world_size() == 1:
        return model
    return DistributedDataParallel(
        model, forward_sync_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=True
    )


@contextlib.contextmanager
def maybe_no_sync(net: nn.Module, now: bool) -> Iterator[None]:
    """Average the gradients of the passes inside; or keep them to add to, until those of the last part are."""
    if now or not isinstance(net, DistributedDataParallel):
        yield
    else:
        with net.no_sync():
            yield


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error only says that another process is gone."""
    return world_size() > 1 and isinstance(error, RuntimeError) and any(sign in str(error) for sign in _GONE)


# Of gloo and of NCCL; torch has no class of its own for the former.
_GONE = ("gloo/transport", "Connection closed by peer", "NCCL", "TCPStore")


def describe() -> str:
    """For a person: how many processes, and what their gradients go through; empty for a single one."""
    if world_size() == 1:
        return ""
    return f"{world_size()} ({'nccl' if torch.cuda.is_available() else 'gloo'})"


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))

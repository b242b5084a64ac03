"""Trace of the tensors that a training step allocates and frees, made without computing anything.

The project's own ``Trainer`` takes its real steps on fake tensors, which have real shapes, dtypes and lifetimes but no
values. The tensors are on the CPU, because torch's fake CUDA tensors end the process in backward; ``CudaAutocast``
gives them the dtypes that they would have on a GPU. Memory that an operation allocates inside its kernel (scratch,
cuDNN's workspace) is not traced.
"""

import contextlib
import copy
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Batch
from roofscale.errors import ConfigError
from roofscale.forecast.cuda_autocast import CudaAutocast
from roofscale.forecast.op_cost import OpCost, op_cost
from roofscale.torch_compat import TRACING
from roofscale.train.device import Execution
from roofscale.train.trainer import Trainer

_STEPS = 2  # the optimiser allocates its state at the end of the first: only the second step has all of it
_BATCHES = (2, 3)  # two sizes are traced, to fit what grows with the batch; not 1, whose strides are ambiguous
PARTS = 2  # micro-batches traced: while the second has its activations, the gradients of the first are alive
CONVOLUTION = -1  # event of a convolution, which may have allocated a workspace


@dataclass(frozen=True)
class Storage:
    """Memory block behind one or more tensors."""

    nbytes: float  # unrounded
    kind: str  # parameters, gradients, optimizer, activations (the batch among them), temporary
    module: str  # name of the module whose forward pass allocated it; empty if none did
    per_sample: float = 0.0  # bytes that each further sample adds


@dataclass(frozen=True)
class Trace:
    """Storages of some training steps in order of allocation, and the events of their lives.

    ``events`` holds indices of ``storages``: the first occurrence of an index is the allocation, the second the
    release. ``CONVOLUTION`` may occur between them. ``work`` holds the operations of the last step.
    """

    storages: tuple[Storage, ...]
    events: tuple[int, ...]
    work: tuple[OpCost, ...] = ()

    def at(self, batch: int) -> "Trace":
        """Return the trace of the same steps with ``batch`` samples a step, or a micro-batch if it is split."""
        grown = (replace(s, nbytes=s.nbytes + batch * s.per_sample, per_sample=0.0) for s in self.storages)
        return Trace(tuple(grown), self.events, tuple(cost.at(batch) for cost in self.work))

    def events_in_order(self) -> Iterator[tuple[int, bool]]:
        """Yield each event: the storage's index or ``CONVOLUTION``, and whether it is allocated (else released).

        A convolution's workspace is released at once; its one event stands for both.
        """
        alive: set[int] = set()
        for index in self.events:
            born = index not in alive
            if index != CONVOLUTION:
                (alive.add if born else alive.remove)(index)
            yield index, born

    def live_bytes(self) -> Iterator[tuple[int, bool, float]]:
        """Yield after each event the storage's index, whether it was allocated, and the bytes alive in all storages."""
        held = 0.0
        for index, born in self.events_in_order():
            if index != CONVOLUTION:
                held += self.storages[index].nbytes if born else -self.storages[index].nbytes
                yield index, born, held


def trace_training(config: RunConfig, precision: str) -> Trace:
    """Trace training steps once for every batch size: each storage has fixed bytes and bytes a sample.

    If batches are split into micro-batches, two of them are traced, since every further one allocates what the second
    does. The trace's batch is then that of one micro-batch.

    Args:
        config: run config; its ``batch_size`` is not used.
        precision: fp32, bf16 or fp16, as resolved for the GPU.

    Raises:
        ConfigError: the step is compiled, the model cannot be built or traced, or its operations depend on the batch
            size.
    """
    if config.compile:
        raise ConfigError(
            "compile=true: expected a step as it is written, because a compiled one holds other tensors than those "
            "that can be traced; set compile=false, or measure a short run instead."
        )
    parts = min(config.micro_batches, PARTS)
    config = config.with_overrides({"micro_batches": parts})
    net = models.build(config)
    try:
        with TRACING:
            low, high = (trace_batch(config, precision, net, batch * parts) for batch in _BATCHES)
    except Exception as error:  # an operation that needs values may raise anything on fake tensors
        raise ConfigError(
            f"encoder={config.encoder} decoder={config.decoder} image_size={config.image_size}: expected a model whose "
            f"training step can be traced, and this one's cannot ({f'{type(error).__name__}: {error}'[:300]}); choose "
            "another encoder or decoder, or measure a short run instead."
        ) from error
    if low.events != high.events:
        raise ConfigError(
            f"encoder={config.encoder} decoder={config.decoder}: its operations change with the batch size, so that no "
            "forecast can be made; choose another encoder or decoder, or measure it on the GPU."
        )
    storages = []
    for few, many in zip(low.storages, high.storages, strict=True):
        fixed, each = _line(few.nbytes, many.nbytes)
        storages.append(replace(few, nbytes=fixed, per_sample=each))
    work = []
    for small, large in zip(low.work, high.work, strict=True):
        (flops, flops_each), (nbytes, bytes_each) = _line(small.flops, large.flops), _line(small.nbytes, large.nbytes)
        work.append(replace(small, flops=flops, nbytes=nbytes, per_sample=(flops_each, bytes_each)))
    return Trace(tuple(storages), low.events, tuple(work))


def _line(few: float, many: float) -> tuple[float, float]:
    """Return intercept and slope over the batch size of a line through the amounts at both _BATCHES."""
    each = (many - few) / (_BATCHES[1] - _BATCHES[0])
    return few - _BATCHES[0] * each, each


def trace_batch(config: RunConfig, precision: str, net: nn.Module, batch: int, *, fake: bool = True) -> Trace:
    """Trace training steps of one batch size.

    Args:
        config: run config; its ``batch_size`` is not used.
        precision: fp32, bf16 or fp16; fp16 is traced as bf16, which takes the same bytes.
        net: model on the CPU; it is copied and not changed.
        batch: samples a step.
        fake: whether to use fake tensors; else the steps are computed on the CPU.
    """
    execution = Execution(torch.device("cpu"), "bf16" if precision == "fp16" else precision, "traced")
    mode = _FakeMode() if fake else contextlib.nullcontext()
    net = copy.deepcopy(net)
    recorder = Recorder()
    with mode:
        if fake:
            _make_fake(net)
        host_batch = _batch(config, batch)
        recorder.ignore(host_batch[:-1])
        for tensor in (*net.parameters(), *net.buffers()):
            recorder.record(tensor)  # allocated before the recorder is active
        with recorder, CudaAutocast(), _naming_modules(net, recorder):
            _change_layout(net, models.memory_format(config))
            recorder.assign_kind("parameters", (*net.parameters(), *net.buffers()))
            trainer = _TracedTrainer(config, _STEPS, execution=execution, model=net)
            for _ in range(_STEPS):
                recorder.work.clear()  # only the last step's operations are kept
                _step(trainer, recorder, host_batch)
        return recorder.trace()


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Dispatch mode that records each operation's cost, and allocation and release of the storages it returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "parameters"
        self.module = ""
        self.work: list[OpCost] = []
        self._storages: list[Storage] = []
        self._events: list[int] = []
        # A storage's Python object lives as long as the storage itself, so its id is unique until the release.
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._ignored: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and record its cost and its results."""
        result = func(*args, **(kwargs or {}))
        if cost := op_cost(func, args, kwargs or {}, result, forward=self.phase == "activations"):
            self.work.append(cost)
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.record(value)
        if func.name().startswith("aten::convolution"):
            self._events.append(CONVOLUTION)
        return result

    def record(self, tensor: torch.Tensor) -> None:
        """Record a tensor's storage if it is new and not empty."""
        storage = tensor.untyped_storage()
        if id(storage) in self._alive or not storage.nbytes() or any(storage is ignored for ignored in self._ignored):
            return
        key, index = id(storage), len(self._storages)

        def released(_: object) -> None:
            del self._alive[key]
            self._events.append(index)

        self._storages.append(Storage(storage.nbytes(), self.phase, self.module))
        self._alive[key] = index, weakref.ref(storage, released)
        self._events.append(index)

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leave out tensors that are not on the device."""
        self._ignored += [tensor.untyped_storage() for tensor in tensors]

    def assign_kind(self, kind: str, tensors: Iterable[torch.Tensor]) -> None:
        """Set the kind of tensors that are alive, which was not known when they were allocated."""
        for tensor in tensors:
            if (entry := self._alive.get(id(tensor.untyped_storage()))) is not None:
                index, _ = entry
                self._storages[index] = replace(self._storages[index], kind=kind)

    def trace(self) -> Trace:
        """Return the trace so far, with consecutive releases sorted by allocation.

        Autocast releases its casts of the weights in the order of a hash table, which differs from trace to trace;
        sorted, the traces of two batch sizes have equal events.
        """
        allocated: set[int] = set()
        events: list[int] = []
        releases: list[int] = []
        for index in self._events:
            if index in allocated:
                releases.append(index)
                continue
            events += [*sorted(releases), index]
            releases.clear()
            if index != CONVOLUTION:
                allocated.add(index)
        return Trace(tuple(self._storages), (*events, *sorted(releases)), tuple(self.work))


class _TracedTrainer(Trainer):
    """Trainer on a CPU that copies its batch, as it would to a GPU."""

    def to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return copies of image, target and labelled, the image in the model's memory format."""
        image_NCHW = batch.image_NCHW.clone().contiguous(memory_format=self.format)
        return image_NCHW, batch.target_NKHW.clone(), batch.labelled_NK.clone()


def _step(trainer: Trainer, recorder: Recorder, batch: Batch) -> None:
    """Take one step as ``Trainer.step`` does, without its check for a finite loss, which needs a value."""
    trainer.begin()
    labelled = trainer.count_labelled(batch)
    for part in trainer.parts(batch):
        recorder.phase = "activations"
        loss = trainer.loss(part, labelled)
        recorder.phase = "temporary"
        trainer.backward(loss)
        recorder.assign_kind("gradients", (p.grad for p in trainer.model.parameters() if p.grad is not None))
    trainer.update()
    states = (value for state in trainer.optimizer.state.values() for value in state.values())
    recorder.assign_kind("optimizer", (value for value in states if isinstance(value, torch.Tensor)))


class _FakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Fake mode that survives deepcopy: a trainer with an EMA copies its model, which must stay in the same mode."""

    def __deepcopy__(self, _memo: object) -> "_FakeMode":
        return self


def _batch(config: RunConfig, batch: int) -> Batch:
    """Return a batch as the loader yields it, in host memory."""
    size, channels = config.image_size, len(CHANNELS)
    image_NCHW = torch.zeros(batch, 3, size, size, dtype=torch.uint8)
    target_NKHW = torch.zeros(batch, channels, size, size, dtype=torch.uint8)
    labelled_NK = torch.ones(batch, channels, dtype=torch.bool)
    return Batch(image_NCHW, target_NKHW, labelled_NK, [f"traced/{i}" for i in range(batch)])


def _make_fake(net: nn.Module) -> None:
    """Replace every weight and buffer by a fake one; a model cannot be built fake, because timm reads values."""
    replaced: dict[int, torch.Tensor] = {}  # a weight that two modules share stays shared

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in replaced:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            is_weight = isinstance(tensor, nn.Parameter)
            replaced[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
        return replaced[id(tensor)]

    for module in net.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = fake(tensor)  # type: ignore[assignment]


def _change_layout(net: nn.Module, layout: Any) -> None:
    """Convert to a memory format as ``net.to(memory_format=...)`` does, which refuses fake weights."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)


@contextlib.contextmanager
def _naming_modules(net: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Set the recorder's ``module`` to the module whose forward pass runs, while the context is open."""
    names = {module: name for name, module in net.named_modules()}
    outer: list[str] = []

    def enter(module: nn.Module, _inputs: Any) -> None:
        outer.append(recorder.module)
        recorder.module = names.get(module, recorder.module)

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        recorder.module = outer.pop()

    hooks: list[Any] = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

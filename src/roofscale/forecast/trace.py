"""Trace of the tensors that a training step allocates and frees, made without computing anything.

A training step (``training_step``) is taken on fake tensors, which have real shapes, dtypes and lifetimes but no
values. The tensors are on the CPU, because torch's fake CUDA tensors end the process in backward; ``CudaAutocast``
gives them the dtypes that they would have on a GPU. What a CUDA kernel allocates and frees inside one operation is
added by ``workspace``.
"""

import contextlib
import copy
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast.cuda_autocast import CudaAutocast
from roofscale.forecast.op_cost import OpCost, op_cost, tensors_in
from roofscale.forecast.training_step import Training, TrainingStep
from roofscale.forecast.workspace import WORKSPACE, workspace_bytes
from roofscale.torch_compat import TRACING

_BATCHES = (2, 3)  # two sizes are traced, to fit what grows with the batch; not 1, whose strides are ambiguous


@dataclass(frozen=True)
class Storage:
    """Memory block behind one or more tensors."""

    nbytes: float  # unrounded
    kind: str  # parameters, gradients, optimizer, activations (the batch among them), temporary, workspace
    module: str  # name of the module whose forward pass allocated it; empty if none did
    per_sample: float = 0.0  # bytes that each further sample adds
    least: float = 0.0  # bytes that it has with any batch

    def at(self, batch: int) -> "Storage":
        """Return the storage with ``batch`` samples."""
        return replace(self, nbytes=max(self.nbytes + batch * self.per_sample, self.least), per_sample=0.0)


@dataclass(frozen=True)
class Trace:
    """Storages of training steps in order of allocation, and the events of their lives.

    ``events`` holds indices of ``storages``: the first occurrence of an index is the allocation, the second the
    release. ``work`` holds the operations of one step.
    """

    storages: tuple[Storage, ...]
    events: tuple[int, ...]
    work: tuple[OpCost, ...] = ()
    start: int = 0  # number of events before the first step: weights, gradients and the optimizer's state

    def at(self, batch: int) -> "Trace":
        """Return the trace of the same steps with ``batch`` samples a step, or a micro-batch if it is split."""
        return replace(
            self, storages=tuple(s.at(batch) for s in self.storages), work=tuple(cost.at(batch) for cost in self.work)
        )

    def events_in_order(self) -> Iterator[tuple[int, bool]]:
        """Yield each event: the storage's index, and whether it is allocated (else released)."""
        alive: set[int] = set()
        for index in self.events:
            born = index not in alive
            (alive.add if born else alive.remove)(index)
            yield index, born

    def live_bytes(self) -> Iterator[tuple[int, bool, float]]:
        """Yield after each event the storage's index, whether it was allocated, and the bytes alive in all storages."""
        held = 0.0
        for index, born in self.events_in_order():
            held += self.storages[index].nbytes if born else -self.storages[index].nbytes
            yield index, born, held

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all gradients, from a trace of one step."""
        return int(sum(self.storages[index].nbytes for index in self.events[: self.start] if self._is_gradient(index)))

    def first_two_steps(self, *, in_parts: bool = False) -> "Trace":
        """Return the first two steps of a training, of a trace of any later one.

        The optimizer allocates its state at the end of the first step, in memory that the activations have left. The
        gradients that the second step frees are those of the first.

        Args:
            in_parts: whether batches are split into micro-batches. The second step is then the second micro-batch:
                its gradients are added to those of the first, which stay.
        """
        before, step = self.events[: self.start], self.events[self.start :]
        count = len(self.storages)  # the first step's storages have the second's indices, and so many more
        left = [index for index, times in Counter(step).items() if times == 1 and index not in before]
        handed_on = {old: count + new for old, new in self._matching_gradients(before, left).items()}
        optimizer = [index for index in before if self.storages[index].kind == "optimizer"]
        events = [index for index in before if index not in handed_on and index not in optimizer]
        events += [count + index for index in step if index not in handed_on]
        events += [count + index for index in left if count + index not in handed_on.values()] + optimizer
        for index in step:
            if index not in handed_on:
                events += [index, index] if in_parts and index in left and self._is_gradient(index) else [index]
            elif not in_parts:
                events.append(handed_on[index])
        return Trace((*self.storages, *self.storages), tuple(events), self.work)

    def _matching_gradients(self, before: Iterable[int], left: Iterable[int]) -> dict[int, int]:
        """Return the gradients alive before the step, each with one of its size that the step leaves behind."""
        by_size: dict[tuple[float, float], list[int]] = defaultdict(list)
        for index in left:
            if self._is_gradient(index):
                by_size[self.storages[index].nbytes, self.storages[index].per_sample].append(index)
        old = (index for index in before if self._is_gradient(index) and index in self.events[self.start :])
        sizes = {index: by_size[self.storages[index].nbytes, self.storages[index].per_sample] for index in old}
        return {index: same.pop() for index, same in sizes.items() if same}

    def _is_gradient(self, index: int) -> bool:
        return self.storages[index].kind == "gradients"


def trace_run(config: RunConfig, precision: str) -> Trace:
    """Trace the step of a run's trainer for every batch size; the batch is one micro-batch if batches are split.

    Raises:
        ConfigError: as ``trace_step`` does, or the step is compiled, or the model cannot be built.
    """
    if config.compile:
        raise ConfigError(
            "compile=true: expected a step as it is written, because a compiled one holds other tensors than those "
            "that can be traced; set compile=false, or measure a short run instead."
        )
    return trace_step(TrainingStep.of_run(config), precision)


def trace_step(step: TrainingStep, precision: str) -> Trace:
    """Trace a training step once for every batch size: each storage has fixed bytes and bytes a sample.

    Raises:
        ConfigError: the step cannot be traced, or its operations depend on the batch size.
    """
    recorder = Recorder()
    try:
        with TRACING:
            low, high = (trace_batch(step, precision, size, recorder := Recorder()) for size in _BATCHES)
    except Exception as error:  # an operation that needs values may raise anything on fake tensors
        operation = getattr(error, "func", "")  # of torch's errors on shapes and numbers that depend on values
        at = f" in module {recorder.module or 'the loss'}" + (f", operation {operation}" if operation else "")
        raise ConfigError(
            f"{step.name}: expected a model whose training step can be traced, and this one's cannot{at} "
            f"({f'{type(error).__name__}: {error}'[:300]}); choose another model, such as another encoder or decoder, "
            "or measure a short run instead."
        ) from error
    return join(step.name, low, high)


def join(name: str, low: Trace, high: Trace) -> Trace:
    """Join the traces of both ``_BATCHES`` into one for every batch size.

    Raises:
        ConfigError: the operations depend on the batch size.
    """
    if low.events != high.events or len(low.work) != len(high.work):
        raise ConfigError(
            f"{name}: its operations change with the batch size, so that no forecast can be made; choose another "
            "model, such as another encoder or decoder, or measure it on the GPU."
        )
    storages = []
    for few, many in zip(low.storages, high.storages, strict=True):
        fixed, each = _line(few.nbytes, many.nbytes)
        storages.append(replace(few, nbytes=fixed, per_sample=each))
    work = []
    for small, large in zip(low.work, high.work, strict=True):
        (flops, flops_each), (nbytes, bytes_each) = _line(small.flops, large.flops), _line(small.nbytes, large.nbytes)
        work.append(replace(small, flops=flops, nbytes=nbytes, per_sample=(flops_each, bytes_each)))
    return replace(low, storages=tuple(storages), work=tuple(work))


def _line(few: float, many: float) -> tuple[float, float]:
    """Return intercept and slope over the batch size of a line through the amounts at both _BATCHES."""
    each = (many - few) / (_BATCHES[1] - _BATCHES[0])
    return few - _BATCHES[0] * each, each


def trace_batch(
    step: TrainingStep, precision: str, batch: int, recorder: "Recorder | None" = None, *, fake: bool = True
) -> Trace:
    """Trace one training step of one batch size, after steps that have allocated gradients and optimizer state.

    fp16 is traced as bf16, which takes the same bytes. Without fake tensors the step is computed on the CPU.
    """
    mode = _FakeMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()
    net = copy.deepcopy(step.net)
    recorder = recorder or Recorder()
    layout = torch.channels_last if step.channels_last else torch.contiguous_format
    with mode:
        replace_tensors(net, fake_copy if fake else lambda tensor: tensor)
        inputs = step.inputs(batch) if step.on_host else None
        recorder.ignore(tensors_in(inputs))
        for tensor in _tensors_of(net):
            recorder.record(tensor)  # allocated before the recorder is active
        with recorder, CudaAutocast(), _naming_modules(net, recorder):
            _change_layout(net, layout)
            recorder.assign_kind("parameters", _tensors_of(net))
            training = step.start(net, "bf16" if precision == "fp16" else precision)
            _allocate_state(training, recorder)
            recorder.begin_step()
            _take_step(training, recorder, step.inputs(batch) if inputs is None else inputs)
        return recorder.trace()


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Dispatch mode that records each operation's cost, and allocation and release of the storages it returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "parameters"
        self.module = ""
        self._work: list[OpCost] = []
        self._storages: list[Storage] = []
        self._events: list[int] = []
        self._start = 0
        # A storage's Python object lives as long as the storage itself, so its id is unique until the release.
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._ignored: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and record its cost, its results, and the workspace of its CUDA kernel."""
        result = func(*args, **(kwargs or {}))
        if cost := op_cost(func, args, kwargs or {}, result, forward=self.phase == "activations"):
            self._work.append(cost)
        for tensor in tensors_in(result):
            self.record(tensor)
        if scratch := workspace_bytes(func, args, result):
            nbytes, least = scratch
            self._storages.append(Storage(nbytes, WORKSPACE, self.module, least=least))
            self._events += 2 * [len(self._storages) - 1]
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

    def begin_step(self) -> None:
        """Start the traced step: what is alive now was allocated by the steps before."""
        alive = sorted(index for index, _ in self._alive.values())
        self._events, self._start = alive, len(alive)
        self._work.clear()

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
            allocated.add(index)
        return Trace(tuple(self._storages), (*events, *sorted(releases)), tuple(self._work), self._start)


def _allocate_state(training: Training, recorder: Recorder) -> None:
    """Allocate the gradients and the optimizer's state by an update with gradients of zero."""
    trained = [weight for group in training.optimizer.param_groups for weight in group["params"]]
    recorder.phase = "gradients"
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    recorder.phase = "temporary"
    training.update()
    recorder.assign_kind("optimizer", tensors_in([list(state.values()) for state in training.optimizer.state.values()]))


def _take_step(training: Training, recorder: Recorder, batch: Any) -> None:
    """Take one step as ``Trainer.step`` does, without its check for a finite loss, which needs a value."""
    recorder.phase = "temporary"
    training.begin()
    recorder.phase = "activations"
    loss = training.loss(batch)
    recorder.phase = "temporary"
    training.backward(loss)
    del loss
    trained = (weight for group in training.optimizer.param_groups for weight in group["params"])
    recorder.assign_kind("gradients", (weight.grad for weight in trained if weight.grad is not None))
    training.update()


class _FakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Fake mode that survives deepcopy: a trainer with an EMA copies its model, which must stay in the same mode."""

    def __deepcopy__(self, _memo: object) -> "_FakeMode":
        return self


class _AnyBatchNorm(_BatchNorm):
    """Batch norm of any number of dimensions, in place of SyncBatchNorm, which computes on GPUs only."""

    def _check_input_dim(self, _input: torch.Tensor) -> None: ...


def _tensors_of(net: nn.Module) -> list[torch.Tensor]:
    """Return weights, buffers, and tensors that are plain attributes of modules, each once."""
    plain = [value for module in net.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return [*net.parameters(), *net.buffers(), *plain]


def fake_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same kind, shape and strides in the active fake mode."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def replace_tensors(net: nn.Module, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace every tensor of a net; a model cannot be built fake, because timm reads values."""
    replaced: dict[int, torch.Tensor] = {}  # a weight that two modules share stays shared
    for module in net.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = _AnyBatchNorm  # type: ignore[assignment]
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for table in tables:
            for name, tensor in table.items():
                if isinstance(tensor, torch.Tensor):
                    if id(tensor) not in replaced:
                        replaced[id(tensor)] = make(tensor)
                    table[name] = replaced[id(tensor)]


def _change_layout(net: nn.Module, layout: torch.memory_format) -> None:
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

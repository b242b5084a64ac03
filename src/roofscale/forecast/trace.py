"""Which tensors a training step makes and when they die, traced without computing anything.

The project's own ``Trainer`` takes its real steps on fake tensors: shapes, types and lifetimes are real, the numbers
are not there. The tensors are on the CPU, because torch's fake CUDA tensors end the process in backward;
``CudaAutocast`` gives them the types that they would have on a GPU. What an operation allocates within itself (a
kernel's scratch, cuDNN's workspace) cannot be seen.
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

_STEPS = 2  # the optimiser's state is born at the end of the first: only the second step has all of it
_BATCHES = (2, 3)  # traced, to tell what grows with the batch; not 1, whose strides are ambiguous
PARTS = 2  # of a batch that is cut into parts: the gradients of the first lie beside the activations of the second
CONVOLUTION = -1  # stands in the events where a convolution ran, which may have wanted a workspace


@dataclass(frozen=True)
class Storage:
    """The memory of one or more tensors."""

    nbytes: float  # unrounded
    kind: str  # parameters, gradients, optimizer, activations (the batch among them), temporary
    module: str  # whose forward pass made it, empty where none did
    per_sample: float = 0.0  # bytes that each further sample adds


@dataclass(frozen=True)
class Trace:
    """The storages of some training steps, in order of birth, and what befell them.

    ``events`` are indices of ``storages``: the first time that one stands there it is born, the second time it dies.
    ``CONVOLUTION`` may stand between. ``work`` are the operations of the last step.
    """

    storages: tuple[Storage, ...]
    events: tuple[int, ...]
    work: tuple[OpCost, ...] = ()

    def at(self, batch: int) -> "Trace":
        """The trace of the same steps with ``batch`` samples each, or in each part."""
        grown = (replace(s, nbytes=s.nbytes + batch * s.per_sample, per_sample=0.0) for s in self.storages)
        return Trace(tuple(grown), self.events, tuple(one.at(batch) for one in self.work))

    def events_in_order(self) -> Iterator[tuple[int, bool]]:
        """Each event in order: the storage or ``CONVOLUTION``, and whether it begins to live or dies.

        A convolution's workspace dies at once; its event stands for both.
        """
        alive: set[int] = set()
        for index in self.events:
            born = index not in alive
            if index != CONVOLUTION:
                (alive.add if born else alive.remove)(index)
            yield index, born

    def live_bytes(self) -> Iterator[tuple[int, bool, float]]:
        """After each birth and death: the storage, whether it was born, and the bytes then alive."""
        held = 0.0
        for index, born in self.events_in_order():
            if index != CONVOLUTION:
                held += self.storages[index].nbytes if born else -self.storages[index].nbytes
                yield index, born, held


def trace_training(config: RunConfig, precision: str) -> Trace:
    """Trace training steps once for every batch size: each storage's bytes are a fixed part and one a sample.

    Of a run whose batches are cut into parts, two parts are traced, as the third is to the second what the second is to
    the first; and the batch of the trace is that of a part.

    Args:
        config: of the run; its ``batch_size`` plays no part.
        precision: fp32, bf16 or fp16, as resolved for the GPU.

    Raises:
        ConfigError: a model that cannot be built or traced, or whose operations hang on the batch size.
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
    except Exception as error:  # whatever an operation makes of tensors without values
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
    for little, much in zip(low.work, high.work, strict=True):
        (flops, flops_each), (nbytes, bytes_each) = _line(little.flops, much.flops), _line(little.nbytes, much.nbytes)
        work.append(replace(little, flops=flops, nbytes=nbytes, per_sample=(flops_each, bytes_each)))
    return Trace(tuple(storages), low.events, tuple(work))


def _line(few: float, many: float) -> tuple[float, float]:
    """What does not grow with the batch, and what each sample adds, from the amounts at both of _BATCHES."""
    each = (many - few) / (_BATCHES[1] - _BATCHES[0])
    return few - _BATCHES[0] * each, each


def trace_batch(config: RunConfig, precision: str, net: nn.Module, batch: int, *, fake: bool = True) -> Trace:
    """Trace training steps of one batch size; with ``fake=False`` they are really computed, on the CPU.

    Args:
        config: of the run.
        precision: fp32, bf16 or fp16; fp16 is traced as bf16, which takes the same bytes.
        net: the model, on the CPU; left as it is.
        batch: samples a step.
    """
    where = Execution(torch.device("cpu"), "bf16" if precision == "fp16" else precision, "traced")
    mode = _FakeMode() if fake else contextlib.nullcontext()
    net = copy.deepcopy(net)
    recorder = Recorder()
    with mode:
        if fake:
            _make_fake(net)
        in_host_memory = _batch(config, batch)
        recorder.ignore(in_host_memory[:-1])
        for tensor in (*net.parameters(), *net.buffers()):
            recorder.record(tensor)
        with recorder, CudaAutocast(), _naming_modules(net, recorder):
            _change_layout(net, models.memory_format(config))
            recorder.assign_kind("parameters", (*net.parameters(), *net.buffers()))
            trainer = _TracedTrainer(config, _STEPS, where=where, model=net)
            for _ in range(_STEPS):
                recorder.work.clear()
                _step(trainer, recorder, in_host_memory)
        return recorder.trace()


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Notes each dispatched operation's work, and the birth and death of every storage that one returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "parameters"
        self.module = ""
        self.work: list[OpCost] = []
        self._storages: list[Storage] = []
        self._events: list[int] = []
        # A storage's Python object lives as long as the storage itself, so that its id is its own until it dies.
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._elsewhere: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        if done := op_cost(func, args, kwargs or {}, result, forward=self.phase == "activations"):
            self.work.append(done)
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.record(value)
        if func.name().startswith("aten::convolution"):
            self._events.append(CONVOLUTION)
        return result

    def record(self, tensor: torch.Tensor) -> None:
        """Note a tensor's storage, if it is new and holds anything."""
        storage = tensor.untyped_storage()
        if id(storage) in self._alive or not storage.nbytes() or any(storage is one for one in self._elsewhere):
            return
        key, index = id(storage), len(self._storages)

        def died(_: object) -> None:
            del self._alive[key]
            self._events.append(index)

        self._storages.append(Storage(storage.nbytes(), self.phase, self.module))
        self._alive[key] = index, weakref.ref(storage, died)
        self._events.append(index)

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Say which tensors are not on the device."""
        self._elsewhere += [tensor.untyped_storage() for tensor in tensors]

    def assign_kind(self, kind: str, tensors: Iterable[torch.Tensor]) -> None:
        """Say what tensors turned out to be."""
        for tensor in tensors:
            found = self._alive.get(id(tensor.untyped_storage()))
            if found is not None:
                self._storages[found[0]] = replace(self._storages[found[0]], kind=kind)

    def trace(self) -> Trace:
        """What was noted so far; deaths with nothing between them in order of birth.

        Autocast drops its casts of the weights in the order of a hash table, which is another one each time.
        """
        born: set[int] = set()
        events: list[int] = []
        dying: list[int] = []
        for index in self._events:
            if index in born:
                dying.append(index)
                continue
            events += [*sorted(dying), index]
            dying.clear()
            if index != CONVOLUTION:
                born.add(index)
        return Trace(tuple(self._storages), (*events, *sorted(dying)), tuple(self.work))


class _TracedTrainer(Trainer):
    """A trainer on a CPU that copies its batch, as it would have to for a GPU."""

    def to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Copies of image, target and labelled, the image in the model's memory format."""
        image_NCHW = batch.image_NCHW.clone().contiguous(memory_format=self.format)
        return image_NCHW, batch.target_NKHW.clone(), batch.labelled_NK.clone()


def _step(trainer: Trainer, recorder: Recorder, batch: Batch) -> None:
    """One step as ``Trainer.step`` takes it, without its look at whether the loss is finite."""
    trainer.begin()
    labelled = trainer.count_labelled(batch)
    for part in trainer.parts(batch):
        recorder.phase = "activations"
        loss = trainer.loss(part, labelled)
        recorder.phase = "temporary"
        trainer.backward(loss)
        recorder.assign_kind("gradients", (p.grad for p in trainer.model.parameters() if p.grad is not None))
    trainer.update()
    kept = (value for state in trainer.optimizer.state.values() for value in state.values())
    recorder.assign_kind("optimizer", (value for value in kept if isinstance(value, torch.Tensor)))


class _FakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """One that a copied model stays in, which a trainer with an averaged one needs."""

    def __deepcopy__(self, _memo: object) -> "_FakeMode":
        return self


def _batch(config: RunConfig, batch: int) -> Batch:
    """A batch as the loader gives it, in host memory."""
    size, channels = config.image_size, len(CHANNELS)
    image_NCHW = torch.zeros(batch, 3, size, size, dtype=torch.uint8)
    target_NKHW = torch.zeros(batch, channels, size, size, dtype=torch.uint8)
    labelled_NK = torch.ones(batch, channels, dtype=torch.bool)
    return Batch(image_NCHW, target_NKHW, labelled_NK, [f"traced/{i}" for i in range(batch)])


def _make_fake(net: nn.Module) -> None:
    """Swap every weight and buffer for a fake one; models cannot be built fake, because timm asks for values."""
    swapped: dict[int, torch.Tensor] = {}  # a weight that two modules share stays shared

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in swapped:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            is_weight = isinstance(tensor, nn.Parameter)
            swapped[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
        return swapped[id(tensor)]

    for module in net.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = fake(tensor)  # type: ignore[assignment]


def _change_layout(net: nn.Module, layout: Any) -> None:
    """What ``net.to(memory_format=...)`` does, which refuses fake weights."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)


@contextlib.contextmanager
def _naming_modules(net: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Tell the recorder which module's forward pass is under way."""
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

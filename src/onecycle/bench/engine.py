"""The pipeline's engine in parts and as a whole, in every backend and precision that this device has."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from onecycle import data
from onecycle.bench.timing import Stopwatch, Task, images
from onecycle.checkpoint import LIBRARIES
from onecycle.device import Compute, InPrecision, select
from onecycle.loader import Loader, backend, worker_count
from onecycle.model import Classifier
from onecycle.objective import launch_of
from onecycle.params import Params, TrainParams
from onecycle.preparation import Prepared, prepare
from onecycle.schedule import Schedule
from onecycle.tracking.context import processor
from onecycle.training import Run

BACKENDS = ("albumentations", "batched")
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
STATISTICS_OF = 1000  # images; what they are normalised by changes no speed
STEPS = 10**6  # of the schedule; more than any benchmark takes

Turn = tuple[str, ...]


class Engine:
    """What can be timed, by name: ("input", "batched"), ("network", "bf16", "direct"), ("matrix", "bf16"), …"""

    def __init__(self, params: Params) -> None:
        """Prepare everything as the train stage does: `params` decide model, batch size, threads, allocator."""
        dataset, self._images = images(params)
        statistics = data.channel_statistics(dataset.train_images[:STATISTICS_OF])
        self._tasks: dict[Turn, Task] = {}
        computes = _computes(params.train)
        for name in _backends(params):
            augment = params.augment.model_copy(update={"backend": name})
            prepared = prepare(params.model_copy(update={"augment": augment}), dataset, *statistics)
            self._add_backend(name, prepared, params, computes)
        self._compute, self._classifier = prepared.compute, prepared.classifier
        self._chosen = (backend(params.augment), *_names(self._compute))
        self._epoch_images = prepared.loader.images_per_epoch

    def _add_backend(self, name: str, prepared: Prepared, params: Params, trained: list[Compute]) -> None:
        device, batch = prepared.compute.device, params.batch_size
        prefetched = 2 * worker_count(params.runtime.workers, device) if name == "albumentations" else 0
        self._tasks["input", name] = Task(batch, _reading(prepared.loader, device, prefetched))
        pixels, labels = prepared.loader.blank()  # an epoch's would start loader processes amid the capture of a graph
        example = torch.randint_like(pixels, 256), labels
        # torch's own convolutions, too, but without input, lest a benchmark on a CPU have time for a single round
        direct = [replace(compute, convolution="direct") for compute in trained]
        for compute in dict.fromkeys([*trained, *direct]):
            names = _names(compute)
            if compute not in trained and ("network", *names) in self._tasks:
                continue
            run = _run(replace(prepared, compute=compute), params)
            if compute in trained:
                self._tasks["training", name, *names] = Task(batch, _training(run, prepared.loader, device, prefetched))
            if ("network", *names) not in self._tasks:
                self._tasks["network", *names] = Task(batch, _network(run, example, device))
            if ("matrix", names[0]) not in self._tasks:
                self._tasks["matrix", names[0]] = _matrix(compute)
                self._tasks["convolution", names[0]] = _convolution(compute, batch, params.model.width)

    def about(self) -> dict[str, Any]:
        """The device, what runs on it, and what can be timed."""
        kind = self._compute.device.type
        return {
            "device": f"cpu ({processor()})" if kind == "cpu" else str(self._compute).rpartition(", ")[0],
            "kind": kind,
            "threads": torch.get_num_threads(),
            "images": self._images,
            "epoch_images": self._epoch_images,
            "turns": list(self._tasks),
            "chosen": self._chosen,
            "flop_per_image": flop_per_image(self._classifier, self._compute.device),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        }

    def rate(self, turn: Turn, turn_seconds: float) -> float:
        """Images a second; for ("matrix", …) and ("convolution", …) floating-point operations a second."""
        return self._tasks[turn].rate(turn_seconds)


def flop_per_image(classifier: Classifier, device: torch.device) -> float:
    """Floating-point operations of one image, forward and backward, as torch counts them; a product and a sum are 2."""
    network = InPrecision(classifier.train(), Compute(device, torch.float32))
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(network(pixels).sum())
    classifier.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) / len(pixels)


def _backends(params: Params) -> list[str]:
    """Both, but for what only albumentations does."""
    return [name for name in BACKENDS if name == "albumentations" or not params.augment.shift_scale_rotate_probability]


def _computes(train: TrainParams) -> list[Compute]:
    """What `train` asks for, and what the hardware has; bf16 that a CPU only emulates is timed if asked for."""
    asked = select(train)
    kind = asked.device.type
    ways = [{"precision": "auto"}, *([{"precision": "fp16"}] if kind == "cuda" else []), {"precision": "fp32"}]
    others = [select(train.model_copy(update={"convolution": "auto", **way})) for way in ways]
    return list(dict.fromkeys([asked, *others]))


def _names(compute: Compute) -> tuple[str, str]:
    """Of its precision and of how it convolves."""
    return NAMES[compute.precision], compute.convolution


def _run(prepared: Prepared, params: Params) -> Run:
    """A run that neither ends nor gets anywhere."""
    momentum = np.full(STEPS, 0.9) if params.one_cycle.cycle_momentum else None
    train = params.train.model_copy(update={"early_stop_patience": 0, "keep": "last"})
    launch = launch_of(train, prepared.compute.device, params.epochs * prepared.loader.images_per_epoch)
    return Run(prepared, Schedule(np.full(STEPS, 1e-6), momentum), params.optimizer, train, launch=launch)


def _reading(loader: Loader, device: torch.device, prefetched: int) -> Callable[[int], float]:
    """Seconds for so many batches on the device; those that loader processes made ahead do not count."""

    def seconds(times: int) -> float:
        batches, watch = loader.endless(), Stopwatch(device)
        _take(batches, prefetched)
        watch.resume()
        _take(batches, times)
        watch.pause()
        return watch.seconds

    return seconds


def _take(batches: Iterator[object], count: int) -> None:
    for _ in range(count):
        next(batches)


def _network(run: Run, example: tuple[Tensor, Tensor], device: torch.device) -> Callable[[int], float]:
    """Seconds for so many forward and backward passes of one batch, without optimiser and input."""
    pixels, labels = example

    def work() -> None:
        run.classifier.zero_grad(set_to_none=True)
        torch.autograd.backward(run.objective(pixels, labels)[0])

    repeated = _repeated(work, device)

    def seconds(times: int) -> float:
        run.classifier.train()
        return repeated(times)

    return seconds


class _EnoughError(Exception):
    """The turn is over."""


def _training(run: Run, loader: Loader, device: torch.device, prefetched: int) -> Callable[[int], float]:
    """Seconds for so many steps of training, input included; looks at held-out images in between do not count."""

    def seconds(times: int) -> float:
        watch, done = Stopwatch(device), -prefetched

        def on_step() -> None:
            nonlocal done
            done += 1
            if done == 0:
                watch.resume()
            elif done == times or (done > 0 and run.state.seen == loader.images_per_epoch):
                watch.pause()
            if done == times:
                raise _EnoughError

        if not prefetched and run.state.seen < loader.images_per_epoch:  # else the last turn ended with the epoch
            watch.resume()
        with suppress(_EnoughError):
            for _ in run.epochs(on_step):
                if done >= 0:
                    watch.resume()
        return watch.seconds

    return seconds


def _matrix(compute: Compute) -> Task:
    """Products of two random square matrices: big ones, but on a CPU none that leave its cache."""
    side = 8192 if compute.device.type == "cuda" else 1024
    generator = torch.Generator(compute.device).manual_seed(0)  # zeros would run faster than what a network multiplies
    left, right = (
        torch.randn(side, side, device=compute.device, dtype=compute.precision, generator=generator) for _ in range(2)
    )
    product = torch.empty_like(left)
    return Task(2 * side**3, _repeated(lambda: torch.mm(left, right, out=product), compute.device))


def _convolution(compute: Compute, batch: int, width: int) -> Task:
    """Forward passes of the last 3×3 layer that is pooled, which some CPUs compute faster than a matrix product.

    Its images are side by side, up to 16 in one, which fills any vector unit.
    """
    inputs, outputs, side = 4 * width, 8 * width, 8
    abreast = math.gcd(batch, 16)
    generator = torch.Generator(compute.device).manual_seed(0)
    pixels, weights = (
        torch.randn(*shape, device=compute.device, dtype=compute.precision, generator=generator).to(
            memory_format=torch.channels_last
        )
        for shape in ((batch // abreast, inputs, side, abreast * side), (outputs, inputs, 3, 3))
    )
    convolved = partial(F.conv2d, pixels, weights, padding=1)
    return Task(2 * 9 * inputs * outputs * side**2 * batch, _repeated(convolved, compute.device))


def _repeated(work: Callable[[], object], device: torch.device) -> Callable[[int], float]:
    """Seconds for so many times of `work`."""

    def seconds(times: int) -> float:
        watch = Stopwatch(device)
        watch.resume()
        for _ in range(times):
            work()
        watch.pause()
        return watch.seconds

    return seconds

"""Where and how exactly tensors are computed: device, precision, threads, and the allocator's setting."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from onecycle import strips, winograd
from onecycle.convolution import Convolving
from onecycle.errors import UserError
from onecycle.model import Classifier
from onecycle.params import Convolution, TrainParams


@dataclass(frozen=True)
class Compute:
    """A torch device, the precision its matrix products run in (weights and sums stay fp32), and how it convolves."""

    device: torch.device
    precision: torch.dtype
    convolution: Convolution = "direct"

    def autocast(self) -> torch.autocast:
        """The context in which matrix products and convolutions take their precision."""
        # Weights cast once and kept would be old ones in the next run of a CUDA graph; no pass uses one twice anyway.
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=enabled, cache_enabled=False)

    def convolving(self) -> AbstractContextManager[object]:
        """The context in which 3×3 convolutions go another way than torch's own."""
        if self.convolution == "direct":
            return nullcontext()
        way = winograd if self.convolution == "winograd" else strips
        return Convolving(way.convolve, way.gains)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        precision = str(self.precision).removeprefix("torch.")
        return ", ".join([name, precision, *([] if self.convolution == "direct" else [self.convolution])])


class InPrecision(nn.Module):
    """A classifier as a plain network: uint8 images in, fp32 logits out, computed in `compute`'s precision."""

    def __init__(self, classifier: Classifier, compute: Compute) -> None:
        super().__init__()
        self.classifier, self._compute = classifier, compute

    def forward(self, images: Tensor) -> Tensor:
        with self._compute.autocast(), self._compute.convolving():
            return self.classifier.logits(images).float()


def select(train: TrainParams) -> Compute:
    """What `train` asks for; sets threads and determinism for the whole process.

    Raises:
        UserError: a device or precision is asked for that this machine lacks, or a way to convolve that is of no use.
    """
    device = select_device(train)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not train.deterministic
    plain = Compute(device, _precision(train.precision, device.type))
    return replace(plain, convolution=_convolution(train, plain))


def _convolution(train: TrainParams, plain: Compute) -> Convolution:
    fitting: dict[torch.dtype, Convolution] = {torch.float32: "winograd", torch.bfloat16: "strips"}
    fits = fitting[plain.precision] if plain.device.type == "cpu" and train.compile is not True else "direct"
    if train.convolution == "auto":
        return fits if fits == "winograd" or _cpu_has_amx() else "direct"
    if train.convolution not in (fits, "direct"):
        place = {"winograd": "plain fp32", "strips": "plain bf16"}[train.convolution]
        how = ", compiled" if train.compile is True else ""  # which has convolutions of its own
        raise UserError(
            f"train.convolution {train.convolution} is for CPUs in {place}, this is {plain}{how}; set it to auto"
        )
    return train.convolution


def select_device(train: TrainParams) -> torch.device:
    """The device alone, for what computes in fp32 whatever the precision of training.

    Sets threads, determinism, and that fp32 is not TF32, for the whole process, as `select` does.

    Raises:
        UserError: this machine lacks the device, or it has no deterministic kernels.
    """
    kind = _kind(train.device)
    if kind == "mps" and train.deterministic:
        raise UserError(
            "train.deterministic is not for mps, whose pooling has no deterministic kernel; set it to false"
        )
    if train.threads:
        torch.set_num_threads(train.threads)
    if kind == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # all 23 bits of fp32
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return torch.device(kind)


def _kind(wanted: str) -> str:
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
    if not present[wanted]:
        raise UserError(f"train.device is {wanted}, but torch sees no such device here; set it to auto or cpu")
    return wanted


def _precision(wanted: str, kind: str) -> torch.dtype:
    if wanted == "fp16" and kind != "cuda":
        raise UserError(f"train.precision fp16 needs a CUDA device, this is {kind}; set it to auto")
    if wanted != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[wanted]
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if kind == "cpu" and _cpu_multiplies_bf16() else torch.float32


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 matrix instructions (AVX512-bf16 or AMX); without, bf16 is emulated and slow."""
    return _cpu_has("avx512_bf16") or _cpu_has_amx()


def _cpu_has_amx() -> bool:
    return _cpu_has("amx_tile")


def _cpu_has(what: str) -> bool:
    """Torch has no public name for it."""
    return bool(getattr(torch.cpu, f"_is_{what}_supported", bool)())


def keep_buffers_mapped() -> bool:
    """Tell glibc to keep big buffers between steps (×1.27 on the CPU). False where there is no glibc.

    Training allocates and frees the same hundreds of megabytes each step; by default each goes through mmap and
    munmap, and the kernel zeroes every page anew.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    m_mmap_max, m_trim_threshold, m_top_pad = -4, -1, -2  # malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 64 * 2**20))
    return all(mallopt(option, value) for option, value in settings)

"""How many half-precision tensor operations a GPU can issue at a given clock, by model.

The peak of a data sheet holds at one clock; a busy chip runs at another. So the table keeps operations per
clock and multiprocessor (dense bf16 or fp16, fp32 accumulation where they differ, a multiply-add is two),
which the clock then scales.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """One model. `flop_per_clock_sm` × `sms` × `tensor_mhz` is the data sheet's dense peak."""

    model: str
    sms: int
    flop_per_clock_sm: int
    tensor_mhz: int  # the clock at which the data sheet states its tensor peak
    source: str

    @property
    def datasheet_flop_s(self) -> float:
        return self.at(self.tensor_mhz)

    def at(self, sm_mhz: float, *, sms: int | None = None) -> float:
        """FLOP per second at this SM clock, with every tensor core of the GPU (or of `sms` SMs) busy."""
        return float(self.flop_per_clock_sm) * (self.sms if sms is None else sms) * sm_mhz * 1e6


_VOLTA = "NVIDIA V100 data sheet and Volta architecture whitepaper (2017): 8 tensor cores × 64 FMA per SM"
_TURING = "NVIDIA T4 data sheet (2018) and Turing whitepaper: 8 tensor cores × 64 FMA per SM"
_AMPERE = "NVIDIA A100 data sheet and Ampere architecture whitepaper (2020): 4 tensor cores × 256 FMA per SM"
_ADA = "NVIDIA L4 and L40S data sheets (2023) and Ada whitepaper: 4 tensor cores × 128 FMA per SM"
_HOPPER = "NVIDIA H100 architecture whitepaper (2022), table 3: 4 tensor cores × 512 FMA per SM; H200 data sheet (2023)"
_BLACKWELL = "NVIDIA HGX B200 data sheet (2024): 2.25 PFLOP/s dense bf16; operations per clock follow from 148 SMs"

# In order: the first model all of whose words are in NVML's device name.
PEAKS: tuple[Peak, ...] = (
    Peak("B200", 148, 8192, 1860, _BLACKWELL),
    Peak("H100 PCIe", 114, 4096, 1620, _HOPPER),
    Peak("H100 NVL", 132, 4096, 1545, "NVIDIA H100 NVL product brief (2023): 835 TFLOP/s dense"),
    Peak("H200 NVL", 132, 4096, 1545, "NVIDIA H200 NVL data sheet (2024): 836 TFLOP/s dense"),
    Peak("H200", 132, 4096, 1830, _HOPPER),
    Peak("GH200", 132, 4096, 1830, _HOPPER),
    Peak("H100", 132, 4096, 1830, _HOPPER),
    Peak("A100", 108, 2048, 1410, _AMPERE),
    Peak("L40S", 142, 1024, 2490, _ADA),
    Peak("L4", 58, 1024, 2040, _ADA),
    Peak("V100", 80, 1024, 1530, _VOLTA),
    Peak("T4", 40, 1024, 1590, _TURING),
)


def peak_of(name: str) -> Peak | None:
    """The peak of a device by the name NVML or CUDA gives it; None for a model not in the table."""
    words = set(name.lower().replace("-", " ").split())
    return next((peak for peak in PEAKS if set(peak.model.lower().split()) <= words), None)

"""What a machine offers: a table of accelerators from their makers' data sheets, and `--on 64xh200`.

Every figure is the dense one (no structured sparsity) of one device. Nothing here is measured: what a model
reaches of a peak is an assumption that a plan states beside its figures (`harness.plan.speed`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.errors import ConfigError

GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Preset:
    """One accelerator.

    `half_flop_s` is bf16 where `bf16`, else fp16 (accumulation in fp32); `single_flop_s` is fp32 outside tensor
    cores, which is what PyTorch uses by default. `link_byte_s` is what one device sends to its neighbours
    inside a node in one direction, `network_byte_s` its share of the node's network card in the reference
    systems sold with it. AMD's matrix cores compute fp32 too, so there `single_flop_s` is theirs.
    """

    name: str
    title: str
    half_flop_s: float
    single_flop_s: float
    memory_bytes: float
    memory_byte_s: float
    watts: float
    link_byte_s: float
    network_byte_s: float
    source: str
    bf16: bool = True


def _preset(
    name: str, title: str, *, half_tflop_s: float, single_tflop_s: float, memory_gb: float, memory_gb_s: float,
    watts: float, link_gb_s: float, network_gb_s: float, source: str, bf16: bool = True,
) -> Preset:  # fmt: skip
    return Preset(
        name, title, half_tflop_s * 1e12, single_tflop_s * 1e12, memory_gb * 1e9, memory_gb_s * 1e9, watts,
        link_gb_s * 1e9, network_gb_s * 1e9, source, bf16,
    )  # fmt: skip


# NVLink and Infinity Fabric figures are halved: data sheets add up both directions.
_TABLE = (
    _preset(
        "b200", "NVIDIA B200 SXM", half_tflop_s=2250, single_tflop_s=75, memory_gb=180, memory_gb_s=8000, watts=1000,
        link_gb_s=900, network_gb_s=50, source="NVIDIA HGX B200 data sheet (2024), an eighth of the board",
    ),
    _preset(
        "h200", "NVIDIA H200 SXM", half_tflop_s=989.5, single_tflop_s=67, memory_gb=141, memory_gb_s=4800, watts=700,
        link_gb_s=450, network_gb_s=50, source="NVIDIA H200 data sheet (2023), tensor figure without sparsity",
    ),
    _preset(
        "h100", "NVIDIA H100 SXM", half_tflop_s=989.5, single_tflop_s=67, memory_gb=80, memory_gb_s=3350, watts=700,
        link_gb_s=450, network_gb_s=50, source="NVIDIA H100 data sheet (2022), tensor figure without sparsity",
    ),
    _preset(
        "h100-pcie", "NVIDIA H100 PCIe", half_tflop_s=756, single_tflop_s=51, memory_gb=80, memory_gb_s=2000, watts=350,
        link_gb_s=64, network_gb_s=25, source="NVIDIA H100 PCIe product brief (2022), without NVLink bridge",
    ),
    _preset(
        "a100-80", "NVIDIA A100 SXM 80 GB", half_tflop_s=312, single_tflop_s=19.5, memory_gb=80, memory_gb_s=2039,
        watts=400, link_gb_s=300, network_gb_s=25, source="NVIDIA A100 80 GB data sheet (2021)",
    ),
    _preset(
        "a100-40", "NVIDIA A100 SXM 40 GB", half_tflop_s=312, single_tflop_s=19.5, memory_gb=40, memory_gb_s=1555,
        watts=400, link_gb_s=300, network_gb_s=25, source="NVIDIA A100 data sheet (2020)",
    ),
    _preset(
        "a10", "NVIDIA A10", half_tflop_s=125, single_tflop_s=31.2, memory_gb=24, memory_gb_s=600, watts=150,
        link_gb_s=32, network_gb_s=12.5, source="NVIDIA A10 data sheet (2021), tensor figure without sparsity",
    ),
    _preset(
        "l40s", "NVIDIA L40S", half_tflop_s=362, single_tflop_s=91.6, memory_gb=48, memory_gb_s=864, watts=350,
        link_gb_s=32, network_gb_s=25, source="NVIDIA L40S data sheet (2023), tensor figure without sparsity",
    ),
    _preset(
        "l4", "NVIDIA L4", half_tflop_s=121, single_tflop_s=30.3, memory_gb=24, memory_gb_s=300, watts=72,
        link_gb_s=32, network_gb_s=12.5, source="NVIDIA L4 data sheet (2023), tensor figure without sparsity",
    ),
    _preset(
        "rtx4090", "NVIDIA GeForce RTX 4090", half_tflop_s=165.2, single_tflop_s=82.6, memory_gb=24, memory_gb_s=1008,
        watts=450, link_gb_s=32, network_gb_s=1.25, source="NVIDIA Ada architecture whitepaper (2022), fp32 accumulation",
    ),
    _preset(
        "rtx3090", "NVIDIA GeForce RTX 3090", half_tflop_s=71, single_tflop_s=35.6, memory_gb=24, memory_gb_s=936,
        watts=350, link_gb_s=32, network_gb_s=1.25, source="NVIDIA GA102 architecture whitepaper (2020), fp32 accumulation",
    ),
    _preset(
        "mi300x", "AMD Instinct MI300X", half_tflop_s=1307.4, single_tflop_s=163.4, memory_gb=192, memory_gb_s=5300,
        watts=750, link_gb_s=448, network_gb_s=50, source="AMD Instinct MI300X data sheet (2023)",
    ),
    _preset(
        "mi250x", "AMD Instinct MI250X die", half_tflop_s=191.5, single_tflop_s=47.9, memory_gb=64, memory_gb_s=1638,
        watts=280, link_gb_s=200, network_gb_s=12.5,
        source="AMD Instinct MI250X data sheet (2021), one of two dies: each is a device of its own",
    ),
    _preset(
        "v100", "NVIDIA V100 SXM2 32 GB", half_tflop_s=125, single_tflop_s=15.7, memory_gb=32, memory_gb_s=900,
        watts=300, link_gb_s=150, network_gb_s=12.5, source="NVIDIA V100 data sheet (2020)", bf16=False,
    ),
    _preset(
        "t4", "NVIDIA T4", half_tflop_s=65, single_tflop_s=8.1, memory_gb=16, memory_gb_s=300, watts=70,
        link_gb_s=16, network_gb_s=6.25, source="NVIDIA T4 data sheet (2019)", bf16=False,
    ),
)  # fmt: skip
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _TABLE}


@dataclass(frozen=True)
class Machine:
    """`devices` of one kind, in nodes of up to eight."""

    preset: Preset
    devices: int

    @property
    def per_node(self) -> int:
        return min(self.devices, GPUS_PER_NODE)

    @property
    def nodes(self) -> int:
        return self.devices // self.per_node

    def __str__(self) -> str:
        where = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.devices} × {self.preset.title}{where}"


_ON = re.compile(r"(?:(\d+)\s*[x×*]\s*)?([a-z][a-z0-9-]*)", re.IGNORECASE)


def parse_on(text: str) -> Machine:
    """Read "h200", "8xh200" or "64xh200" (nodes of eight).

    Raises:
        ConfigError: not of that form, no device, an unknown accelerator, or nodes that would not be full.
    """
    match = _ON.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"--on {text}", rule="a machine is a number, an x and a preset", remedy="for example --on 8xh200"
        )
    count, name = int(match.group(1) or 1), match.group(2).lower()
    if name not in PRESETS:
        raise ConfigError(f"--on {text}", rule=f"unknown preset {name!r}", remedy=f"known are {', '.join(PRESETS)}")
    if count < 1:
        raise ConfigError(f"--on {text}", rule="a machine has at least one device", remedy="for example --on 8xh200")
    if count > GPUS_PER_NODE and count % GPUS_PER_NODE:
        raise ConfigError(
            f"--on {text}", rule=f"nodes have {GPUS_PER_NODE} devices", remedy=f"choose a multiple of {GPUS_PER_NODE}"
        )
    return Machine(PRESETS[name], count)


def preset_of(device: str) -> Preset | None:
    """The preset of a device by the name CUDA gives it; None where the table has none, or two that differ in memory."""
    words = device.lower().replace("-", " ").replace("nvidia", "").split()
    named = {"h100": "h100-pcie" if "pcie" in words else "h100", "4090": "rtx4090", "3090": "rtx3090"}
    found = next((named.get(word, word) for word in words if named.get(word, word) in PRESETS), None)
    if found is None and "a100" in words:
        found = "a100-80" if any(word.startswith("80") for word in words) else "a100-40"
    return PRESETS[found] if found else None

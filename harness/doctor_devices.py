"""What doctor asks of GPUs and the CPU: models, clocks, precision, utilisation counters, and energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness import hardware
from harness.findings import Finding
from harness.meters.energy import available_energy_source
from harness.meters.nvml import Nvml, NvmlUnavailable
from harness.meters.nvml_device import Device

_GIB = 1 << 30


def check_gpus(environ: Mapping[str, str]) -> list[Finding]:
    """GPUs that CUDA would see, NVML, GPM, precision on them, and what would measure energy."""
    try:
        nvml = Nvml.open()
    except NvmlUnavailable as error:
        return [
            Finding("nvml", "missing", error.rule, f"nothing on a CPU-only machine; else {error.remedy}"),
            _energy(()),
        ]
    with nvml:
        findings = [Finding("nvml", "ok", f"driver {nvml.driver_version or 'of unknown version'}")]
        try:
            devices = nvml.visible(environ)
        except NvmlUnavailable as error:
            return [*findings, Finding("gpu", "warn", str(error), error.remedy)]
        if not devices:
            remedy = "check CUDA_VISIBLE_DEVICES" if nvml.devices() else "check nvidia-smi"
            return [
                *findings,
                Finding("gpu", "missing", f"NVML sees {len(nvml.devices())}, CUDA would see none", remedy),
                _energy(()),
            ]
        for place, device in enumerate(devices):
            findings += _gpu(place, device)
    return [*findings, _energy([device.uuid for device in devices])]


def _gpu(place: int, device: Device) -> list[Finding]:
    topic = f"gpu {place}"
    memory, mhz, capability = device.memory(), device.max_sm_clock_mhz(), device.compute_capability()
    facts = [
        device.name,
        device.uuid,
        "memory unknown" if memory is None else f"{memory.total_bytes / _GIB:.0f} GiB",
        "clock unknown" if mhz is None else f"up to {mhz} MHz",
    ]
    findings = [Finding(topic, "ok", ", ".join(facts))]
    held = [reason for reason in device.throttle_reasons() or () if reason not in ("idle", "application clocks")]
    if held:
        remedy = "expect measured units to be noisy; look at cooling and power limits"
        findings.append(Finding(f"{topic} clocks", "warn", f"held back by: {', '.join(held)}", remedy))
    findings.append(_gpu_precision(topic, capability))
    reader = device.gpm()
    if reader is None:
        remedy = "nothing: utilisation is then coarse, and the tensor estimate unknown"
        findings.append(Finding(f"{topic} gpm", "missing", device.reasons["gpm"], remedy))
    else:
        findings.append(Finding(f"{topic} gpm", "ok", "tensor, SM and DRAM utilisation"))
    return findings


def _gpu_precision(topic: str, capability: tuple[int, int] | None) -> Finding:
    if capability is None:
        return Finding(
            f"{topic} precision", "warn", "compute capability unknown", "choose the precision in the ds_config yourself"
        )
    found = f"capability {capability[0]}.{capability[1]}: "
    if capability >= (8, 0):
        fp8 = ", fp8" if capability >= (8, 9) else ""
        return Finding(f"{topic} precision", "ok", f"{found}bf16, fp16, tf32{fp8}")
    if capability >= (7, 0):
        return Finding(
            f"{topic} precision", "warn", f"{found}fp16 in hardware, bf16 only emulated", "use an fp16 ds_config"
        )
    return Finding(f"{topic} precision", "warn", f"{found}no tensor cores", "use fp32, or a newer GPU")


def _energy(uuids: Sequence[str]) -> Finding:
    source = available_energy_source(uuids)
    if not source.available:
        remedy = "energy will be reported as unknown and budgets in joules refused; other units are unaffected"
        return Finding("energy", "missing", source.reason, remedy)
    if source.reason or source.kind == "nvml-power":
        found = f"{source.description}; {source.reason}" if source.reason else source.description
        return Finding("energy", "warn", found, "figures will be partial or rough; see docs/energy.md")
    return Finding("energy", "ok", source.description)


def check_cpu_precision() -> list[Finding]:
    """The half precision that the CPU multiplies in hardware, by its instruction-set flags."""
    flags = hardware.cpu_flags()
    names = {
        "amx_bf16": "AMX bf16",
        "avx512_bf16": "AVX-512 bf16",
        "avx512f": "AVX-512",
        "avx2": "AVX2",
        "bf16": "bf16",
    }
    found = ", ".join(name for flag, name in names.items() if flag in flags)
    if flags & {"amx_bf16", "avx512_bf16", "bf16"}:
        return [Finding("cpu precision", "ok", found)]
    if flags & {"avx2", "avx512f", "asimd"}:
        return [Finding("cpu precision", "ok", f"{found or 'NEON'}: fp32 is the fast precision, bf16 is only emulated")]
    if not flags:
        return [
            Finding("cpu precision", "warn", "the system does not tell", "measure fp32 against bf16 before a long run")
        ]
    return [Finding("cpu precision", "warn", "no AVX2: matrix products are slow", "use another machine for training")]

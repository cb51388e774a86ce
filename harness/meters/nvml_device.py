"""One GPU or MIG instance as NVML sees it: every query is answered, or is None with its reason.

A query that the driver, the device or a permission refuses for good is not asked again, so what is
unsupported costs one call. A device that is lost is left alone. Devices come from `nvml.Nvml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.meters.gpm import GpmReader

# nvmlReturn_t, from nvml.h. Final: this driver will give the same answer for the rest of the run.
_FINAL = {
    3: "not supported by this device",
    4: "permission denied",
    13: "not in this driver",
    26: "withdrawn by this driver",
}
_LOST = {15: "the GPU is lost", 16: "the GPU needs a reset", 28: "the GPU is gone"}
_NOT_IN_DRIVER = 13

# nvmlClocksEventReason*: why the clock is below what was asked for. Bits from nvml.h.
_CLOCK_REASONS = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal",
    0x040: "hardware thermal",
    0x080: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of device memory."""

    used_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Utilisation:
    """Fractions (0..1) of the driver's last sampling period (1/6 to 1 s) in which a kernel ran, or memory moved.

    `busy` says that something ran, not that the device was full: one small kernel gives 1.0.
    """

    busy: float
    memory: float


class Device:
    """One GPU or MIG instance. Every query returns None where unknown and says why in `reasons`.

    Of a MIG instance NVML knows the memory and, from Hopper on, GPM; clocks and temperature are the whole
    board's, and its energy and power are unknown, because the board is metered as one.
    """

    def __init__(self, api: Any, handle: Any, *, uuid: str, index: int, parent: Device | None = None) -> None:
        self.api = api
        self.handle = handle
        self.uuid = uuid
        self.index = index
        self.parent = parent
        self.reasons: dict[str, str] = {}
        self._final: set[str] = set()
        self._lost: str | None = None
        self._instances: list[Device] | None = None
        self.name = self._ask("name", "nvmlDeviceGetName") or "unknown GPU"
        self.gpu_instance: int | None = self._ask("gpu instance", "nvmlDeviceGetGpuInstanceId") if parent else None
        self.compute_instance: int | None = self._ask("instance", "nvmlDeviceGetComputeInstanceId") if parent else None
        attributes = self._ask("attributes", "nvmlDeviceGetAttributes_v2") if parent else None
        #: Streaming multiprocessors of a MIG instance; None for a whole GPU, whose model tells (see peaks).
        self.sm_count: int | None = None if attributes is None else int(attributes.multiprocessorCount)

    def __repr__(self) -> str:
        return f"Device({self.uuid}, {self.name})"

    @property
    def is_mig(self) -> bool:
        return self.parent is not None

    @property
    def mig_name(self) -> str:
        """The spelling of drivers before 470: MIG-<GPU UUID>/<GPU instance>/<compute instance>."""
        return f"MIG-{self.parent.uuid}/{self.gpu_instance}/{self.compute_instance}" if self.parent else self.uuid

    @property
    def lost(self) -> bool:
        """True once the driver has said that the device is gone; it is then left alone."""
        return self._board._lost is not None

    @property
    def _board(self) -> Device:
        return self.parent or self

    # -- asking ------------------------------------------------------------------------------------
    def _ask(self, query: str, *functions: str, args: Sequence[Any] = ()) -> Any:
        """The first function that this binding and this driver have; None, with a reason, where refused."""
        if query in self._final:
            return None
        lost = self._board._lost
        if lost is not None:
            self.reasons[query] = lost
            return None
        for name in functions:
            function = getattr(self.api, name, None)
            if function is None:
                self.reasons[query] = f"{name} is not in this nvidia-ml-py"
                continue
            try:
                value = function(self.handle, *args)
            except self.api.NVMLError as error:
                if error.value == _NOT_IN_DRIVER:
                    self.reasons[query] = f"{name}: {_FINAL[_NOT_IN_DRIVER]}"
                    continue
                self.refuse(query, error)
                return None
            self.reasons.pop(query, None)
            return value
        self._final.add(query)
        return None

    def refuse(self, query: str, error: Any) -> None:
        """Remember why the driver declined: for good, for now, or because the device is lost."""
        code = int(error.value)
        if code in _LOST:
            self._board._lost = _LOST[code]
        if code in _FINAL:
            self._final.add(query)
        self.reasons[query] = _LOST.get(code) or _FINAL.get(code) or str(error)

    def declined(self, query: str) -> bool:
        """True when asking again is pointless: refused for good, or the device is lost."""
        if self._board._lost is not None:
            self.reasons[query] = self._board._lost
        return query in self._final or self.lost

    def _whole_board_only(self, query: str) -> bool:
        if self.is_mig:
            self.reasons[query] = "NVML meters the whole GPU, not a MIG instance"
        return self.is_mig

    # -- cost --------------------------------------------------------------------------------------
    def energy_mj(self) -> int | None:
        """Millijoules since the driver was loaded (Volta and later); updated every 20 to 100 ms."""
        if self._whole_board_only("energy"):
            return None
        value = self._ask("energy", "nvmlDeviceGetTotalEnergyConsumption")
        return None if value is None else int(value)

    def power_w(self) -> float | None:
        """Watts: averaged over the last second on GA10x, Ada, Hopper and later, at an instant on GA100 and before."""
        if self._whole_board_only("power"):
            return None
        value = self._ask("power", "nvmlDeviceGetPowerUsage")
        return None if value is None else float(value) / 1e3

    def power_limit_w(self) -> float | None:
        if self._whole_board_only("power limit"):
            return None
        value = self._ask("power limit", "nvmlDeviceGetEnforcedPowerLimit")
        return None if value is None else float(value) / 1e3

    # -- state -------------------------------------------------------------------------------------
    def _ask_board(self, query: str, *functions: str, args: Sequence[Any] = ()) -> Any:
        value = self._board._ask(query, *functions, args=args)
        if value is None and self.is_mig:
            self.reasons[query] = self._board.reasons[query]
        return value

    def sm_clock_mhz(self) -> int | None:
        value = self._ask_board("clock", "nvmlDeviceGetClockInfo", args=(self.api.NVML_CLOCK_SM,))
        return None if value is None else int(value)

    def max_sm_clock_mhz(self) -> int | None:
        value = self._ask_board("max clock", "nvmlDeviceGetMaxClockInfo", args=(self.api.NVML_CLOCK_SM,))
        return None if value is None else int(value)

    def temperature_c(self) -> int | None:
        sensor = (self.api.NVML_TEMPERATURE_GPU,)
        value = self._ask_board("temperature", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature", args=sensor)
        return None if value is None else int(value)

    def throttle_reasons(self) -> tuple[str, ...] | None:
        """Why the clock is lower than asked for; empty when nothing holds it back."""
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        bits = self._ask_board("throttle reasons", *names)
        return None if bits is None else tuple(name for bit, name in _CLOCK_REASONS.items() if int(bits) & bit)

    def memory(self) -> MemoryUse | None:
        value = self._ask("memory", "nvmlDeviceGetMemoryInfo")
        return None if value is None else MemoryUse(used_bytes=int(value.used), total_bytes=int(value.total))

    def utilisation(self) -> Utilisation | None:
        value = self._ask("utilisation", "nvmlDeviceGetUtilizationRates")
        return None if value is None else Utilisation(busy=value.gpu / 100, memory=value.memory / 100)

    def compute_capability(self) -> tuple[int, int] | None:
        value = self._ask_board("compute capability", "nvmlDeviceGetCudaComputeCapability")
        return None if value is None else (int(value[0]), int(value[1]))

    def instances(self) -> list[Device]:
        """The MIG instances of a GPU; empty when it is not split, and for an instance itself."""
        if self._instances is None:
            self._instances = []
            mode = None if self.is_mig else self._ask("mig", "nvmlDeviceGetMigMode")
            most = self._ask("mig", "nvmlDeviceGetMaxMigDeviceCount") if mode is not None and mode[0] else None
            for place in range(int(most or 0)):
                # Places are sparse: an empty one answers "not found", which says nothing about the next.
                handle = self._ask("mig", "nvmlDeviceGetMigDeviceHandleByIndex", args=(place,))
                if handle is not None:
                    uuid = str(self.api.nvmlDeviceGetUUID(handle))
                    self._instances.append(Device(self.api, handle, uuid=uuid, index=self.index, parent=self))
        return self._instances

    # -- GPM ---------------------------------------------------------------------------------------
    def gpm(self) -> GpmReader | None:
        """A reader of hardware utilisation counters; None before Hopper, under an old driver or when refused."""
        support = self._ask_board("gpm", "nvmlGpmQueryDeviceSupport")
        if support is None:
            return None
        if not support.isSupportedDevice:
            self.reasons["gpm"] = "this device has no GPM (Hopper and later have)"
            return None
        return GpmReader(self)

"""Hardware utilisation of Hopper and later: which part of the chip worked, for which part of the time.

GPM (GPU performance monitoring) counts cycles; a reading is the average between two samples.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.meters.nvml_device import Device

# GPM metric ids of nvml.h (Hopper and later); each a percentage of time, or of DRAM bandwidth.
GPM_METRICS = {"sm": 2, "tensor": 5, "hmma": 7, "dram": 10, "fp32": 12, "fp16": 13}


@dataclass(frozen=True)
class GpmReading:
    """Fractions (0..1) averaged over `window_s`; None where the device does not count that metric.

    sm: streaming multiprocessors busy · tensor: any tensor pipe active · hmma: half-precision tensor pipe
    active · dram: bandwidth used of the maximum · fp32, fp16: the non-tensor pipes.
    """

    window_s: float
    sm: float | None
    tensor: float | None
    hmma: float | None
    dram: float | None
    fp32: float | None
    fp16: float | None


class GpmReader:
    """Averages GPM metrics between consecutive reads of one device; holds two driver samples until closed."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._api: Any = device.api
        self._samples: list[Any] = []
        self._taken_at: float | None = None
        request = self._api.c_nvmlGpmMetricsGet_t()
        request.version = self._api.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(GPM_METRICS)
        for place, metric in enumerate(GPM_METRICS.values()):
            request.metrics[place].metricId = metric
        self._request = request

    def read(self) -> GpmReading | None:
        """The averages since the previous read; None at the first, and when the driver refuses."""
        device = self._device
        if device.declined("gpm"):
            return None
        try:
            while len(self._samples) < 2:
                self._samples.append(self._api.nvmlGpmSampleAlloc())
            before, after = self._samples
            if device.parent is None:
                self._api.nvmlGpmSampleGet(device.handle, after)
            else:
                self._api.nvmlGpmMigSampleGet(device.parent.handle, device.gpu_instance, after)
            now, previous = time.monotonic(), self._taken_at
            self._samples, self._taken_at = [after, before], now
            if previous is None:
                device.reasons["gpm"] = "needs two samples"
                return None
            self._request.sample1, self._request.sample2 = before, after
            self._api.nvmlGpmMetricsGet(self._request)
        except self._api.NVMLError as error:
            device.refuse("gpm", error)
            self._taken_at = None
            return None
        device.reasons.pop("gpm", None)
        return GpmReading(now - previous, *(_fraction(self._request.metrics[i]) for i in range(len(GPM_METRICS))))

    def close(self) -> None:
        """Free the samples; the reader starts afresh if it is read again."""
        samples, self._samples, self._taken_at = self._samples, [], None
        for sample in samples:
            try:
                self._api.nvmlGpmSampleFree(sample)
            except self._api.NVMLError:
                return  # the driver is gone, and the memory with it


def _fraction(metric: Any) -> float | None:
    """A percentage as 0..1; None when the device refused it or answered out of range (NaN included)."""
    share = float(metric.value) / 100
    return min(share, 1.0) if metric.nvmlReturn == 0 and 0 <= share <= 1.01 else None

"""What NVIDIA's management library knows, or None and the reason why not — never a made-up zero.

The only importer of `pynvml`, the module of the distribution `nvidia-ml-py`. Devices are found by
UUID: NVML counts GPUs in PCI order and CUDA may count them otherwise, so an index names nothing.
What a device is asked, and how it declines, is `nvml_device`'s; hardware utilisation is `gpm`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from harness.errors import IsoBudgetError
from harness.meters.nvml_device import Device

_REMEDIES = {
    4: "make /dev/nvidia* readable for this user",
    9: "load the nvidia kernel module",
    12: "install the NVIDIA driver; in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    18: "the driver was updated while running: reload its kernel module or reboot",
}

_BARE_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_OLD_MIG = re.compile(r"MIG-(GPU-[^/]+)/(\d+)/(\d+)", re.IGNORECASE)


class NvmlUnavailable(IsoBudgetError):
    """NVML, or a device asked of it, cannot be used; `rule` says why and `remedy` what to do."""


class Nvml:
    """An open connection to NVML; a context manager. Safe to use from several threads."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._open = True
        self._devices: list[Device] | None = None

    @classmethod
    def open(cls) -> Nvml:
        """Load the library and connect.

        Raises:
            NvmlUnavailable: no nvidia-ml-py, no library, no driver, no permission, or versions that disagree.
        """
        try:
            import pynvml  # pyright: ignore[reportMissingTypeStubs]
        except ImportError:
            raise NvmlUnavailable(
                "NVML", rule="the Python package nvidia-ml-py is not installed", remedy="pip install nvidia-ml-py"
            ) from None
        api: Any = pynvml
        try:
            api.nvmlInit()
        except api.NVMLError as error:
            remedy = _REMEDIES.get(error.value, "run nvidia-smi: it should name the same fault")
            raise NvmlUnavailable("NVML", rule=str(error), remedy=remedy) from None
        return cls(api)

    def close(self) -> None:
        """Disconnect; devices of this connection must not be asked afterwards. Harmless when repeated."""
        if self._open:
            self._open = False
            try:
                self._api.nvmlShutdown()
            except self._api.NVMLError:
                return  # the driver went away before us; there is nothing left to release

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def driver_version(self) -> str | None:
        try:
            return str(self._api.nvmlSystemGetDriverVersion())
        except self._api.NVMLError:
            return None

    def devices(self) -> list[Device]:
        """Every whole GPU that NVML can reach, in NVML's order; unreachable ones are left out."""
        if self._devices is None:
            self._devices = []
            for index in range(self._count()):
                try:
                    handle = self._api.nvmlDeviceGetHandleByIndex(index)
                    uuid = str(self._api.nvmlDeviceGetUUID(handle))
                except self._api.NVMLError:
                    continue
                self._devices.append(Device(self._api, handle, uuid=uuid, index=index))
        return self._devices

    def _count(self) -> int:
        try:
            return int(self._api.nvmlDeviceGetCount())
        except self._api.NVMLError:
            return 0

    def device(self, uuid: str) -> Device:
        """The GPU or MIG instance of that UUID.

        `uuid` may be as nvidia-smi prints it ("GPU-…", "MIG-…", "MIG-GPU-…/1/0"), as CUDA and torch give it
        (without "GPU-"), or an unambiguous beginning of either.

        Raises:
            NvmlUnavailable: no such device, or several that begin so.
        """
        everything = [unit for gpu in self.devices() for unit in (gpu, *gpu.instances())]
        old = _OLD_MIG.fullmatch(uuid)
        if old is not None:
            found = [d for d in everything if d.is_mig and d.mig_name.lower() == uuid.lower()]
        else:
            wanted = {uuid.lower(), f"gpu-{uuid.lower()}", f"mig-{uuid.lower()}"} if _is_bare(uuid) else {uuid.lower()}
            found = [d for d in everything if d.uuid.lower() in wanted]
            if not found and len(uuid) > len("GPU-"):
                found = [d for d in everything if d.uuid.lower().startswith(uuid.lower())]
        if len(found) != 1:
            raise NvmlUnavailable(
                f"device {uuid}",
                rule="several devices begin so" if found else "NVML does not see it",
                remedy=f"it sees {', '.join(d.uuid for d in everything) or 'none'}",
            )
        return found[0]

    def visible(self, environ: Mapping[str, str]) -> list[Device]:
        """The devices CUDA would enumerate under this environment, in CUDA's order, without asking CUDA.

        Follows the CUDA programming guide (environment variables): unset means all, an empty value none, and
        an invalid entry hides itself and everything after it.

        Raises:
            NvmlUnavailable: CUDA's order is unknowable from here: indices with unlike GPUs and
                CUDA_DEVICE_ORDER not PCI_BUS_ID (CUDA then sorts by its own idea of speed), or an index of
                a GPU in MIG mode. Take the UUIDs from CUDA instead.
        """
        text = environ.get("CUDA_VISIBLE_DEVICES")
        entries = [str(d.index) for d in self.devices()] if text is None else [e.strip() for e in text.split(",")]
        chosen: list[Device] = []
        for entry in entries:
            if re.fullmatch(r"\d+", entry):
                if int(entry) >= len(self.devices()):
                    break
                device = self._by_index(int(entry), environ)
            else:
                try:
                    device = self.device(entry)
                except NvmlUnavailable:
                    break
            if device in chosen:
                return []  # CUDA refuses a list that names a device twice, and offers none
            chosen.append(device)
        return chosen

    def _by_index(self, index: int, environ: Mapping[str, str]) -> Device:
        unlike = len({d.name for d in self.devices()}) > 1
        if unlike and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            raise NvmlUnavailable(
                f"CUDA device {index}",
                rule="the GPUs differ, and CUDA sorts them by speed where NVML sorts by PCI address",
                remedy="set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name devices by UUID",
            )
        device = next((d for d in self.devices() if d.index == index), None)
        if device is None or device.instances():
            raise NvmlUnavailable(
                f"CUDA device {index}",
                rule="NVML cannot reach it" if device is None else "it is split into MIG instances",
                remedy="name the device by the UUID that nvidia-smi -L prints",
            )
        return device


def _is_bare(uuid: str) -> bool:
    return _BARE_UUID.fullmatch(uuid) is not None

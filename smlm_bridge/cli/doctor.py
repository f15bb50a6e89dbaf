"""``doctor``: what is installed, what is missing, what to do."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from smlm_bridge import __version__
from smlm_bridge.cli.common import Run, file_option, verb
from smlm_bridge.cli.reporting import Summary
from smlm_bridge.errors import MissingDependency

EXTRAS = {"train": ("torch", "onnx"), "fiji": ("pyimagej", "scyjava"), "cluster": ("dask", "distributed")}
CORE = (
    "click", "h5py", "matplotlib", "numba", "numpy", "onnxruntime", "pandas", "pyarrow", "pydantic", "rich",
    "scipy", "tifffile",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that was looked for."""

    name: str
    needed_for: str
    found: str | None
    advice: str

    @property
    def status(self) -> str:
        """``ok`` or ``missing``."""
        return "missing" if self.found is None else "ok"


@verb(
    "doctor",
    units="none.",
    example="smlm-bridge doctor --json",
)
@file_option("--fiji", "Fiji directory to look at.")
@file_option("--plugins", "ThunderSTORM's jar or folder to look at.")
def command(run: Run, *, fiji: Path | None, plugins: Path | None) -> Summary:
    """Check this installation: packages, torch device, Java, ImageJ, the display and ThunderSTORM.

    Ends with exit code 4 where a package of the plain install is missing; what only an extra needs is
    reported.
    """
    checks = tuple(_checks(fiji, plugins))
    missing = [check for check in checks if check.found is None]
    broken = any(check.needed_for == "everything" for check in missing)
    lines = [
        f"{check.status:<8}{check.name:<16}{check.found or f'needed for {check.needed_for}'}"
        for check in checks
    ]
    advice = list(dict.fromkeys(f"{check.name}: {check.advice}" for check in missing))
    lines += ["", "To do (only for what you need):", *advice] if advice else ["", "Nothing is missing."]
    values = {
        "version": __version__,
        "ok": not broken,
        "checks": [
            {**asdict(check), "status": check.status, "advice": check.advice if check in missing else None}
            for check in checks
        ],
    }
    return Summary(values, "\n".join(lines), exit_code=MissingDependency.exit_code if broken else 0)


def _checks(fiji: Path | None, plugins: Path | None) -> Iterator[Check]:
    python = f"{platform.python_version()} ({sys.executable})"
    yield Check(
        "python", "everything", python if sys.version_info >= (3, 11) else None, "install Python 3.11."
    )
    for package in CORE:
        yield Check(package, "everything", _version(package), "pip install --upgrade smlm_bridge")
    for extra, packages in EXTRAS.items():
        for package in packages:
            yield Check(package, f"extra '{extra}'", _version(package), f"pip install 'smlm_bridge[{extra}]'")
    yield Check("device", "extra 'train'", _torch_device(), "pip install 'smlm_bridge[train]'")
    from smlm_bridge.bridge.checks import findings

    for finding in findings(fiji=fiji, plugins=plugins):
        yield Check(finding.name, finding.needed_for, finding.found, finding.advice)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_device() -> str | None:
    """What torch would compute on, or None without torch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return f"cpu, {torch.get_num_threads()} threads"
    return ", ".join(
        f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())
    )

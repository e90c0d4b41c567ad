"""Where and when something was measured, and the files that it is written to."""

import json
import os
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.process import ROOT


def environment() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        **{package: version(package) for package in ("torch", "lightning")},
        "python": platform.python_version(),
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": 1,
    }


def commit() -> str:
    """The commit of this code; none if it was copied without its history, or git is missing."""
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "none"
    return git.stdout.strip() or "none"


def write_text(output: Path, content: dict[str, Any], paragraphs: list[str]) -> None:
    """Write the JSON file, and the Markdown beside it if there are paragraphs."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if paragraphs:
        output.with_suffix(".md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")

"""What the benchmarks share: the machine in one line, Markdown tables, and a measurement in its own process."""

import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> str:
    """The processor, as the system names it, and how many of it."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"model name\s*: (.+)", text)
    wide = " with AVX-512" if "avx512f" in text else ""
    return f"{os.cpu_count()} CPUs ({named[1] if named else platform.machine()}{wide})"


def software(*packages: str) -> str:
    """The versions that matter."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])


def heading(title: str, command: str, *packages: str) -> list[str]:
    """The first lines of a page: what was run, when, on what."""
    return [f"# {title}", "", f"`{command}` on {datetime.now(UTC).date()}: {machine()}, {software(*packages)}.", ""]


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; all columns but the first are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def in_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of this folder; it prints one JSON object as its last line."""
    done = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def publish(script: str, lines: list[str]) -> None:
    """Write a page beside its script, and print it."""
    text = "\n".join([*lines, ""])
    Path(script).with_suffix(".md").write_text(text)
    print(text, end="")

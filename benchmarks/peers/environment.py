"""The peers' own environment: libpecos, Omikuji and napkinXC want older libraries than hf_xmc's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PINS = {"libpecos": "1.2.8", "omikuji": "0.5.2", "napkinxc": "0.7.2"}
# What libpecos 1.2.8 imports, at versions from its time; torch is only there to be imported.
SUPPORT = (
    "torch==2.13.0",
    "transformers==4.44.2",
    "numpy<2",
    "pyarrow<18",
    "datasets<3",
    "peft<0.13",
    "accelerate<1",
    "huggingface_hub<0.30",
)


def default_folder() -> Path:
    """``hf_xmc/peers`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hf_xmc" / "peers"


def peers_python(folder: Path) -> Path:
    """The interpreter of the environment in ``folder``, which is made at first use (a few hundred MB, minutes)."""
    python, ready = folder / "bin" / "python", folder / "ready.txt"
    wanted = "\n".join([*(f"{name}=={version}" for name, version in PINS.items()), *SUPPORT])
    if not ready.is_file() or ready.read_text() != wanted:
        print(f"installing {', '.join(PINS)} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted.split("\n")], check=True)
        ready.write_text(wanted)
    return python

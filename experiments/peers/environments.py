"""Virtual environments for other toolkits, made once in a work folder; the project's own stays as it is."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformer_jax.data.cache import cache_directory
from transformer_jax.errors import UserError

TORCH = "torch==2.13.0"  # the CPU build, where pip's index has one: it is enough, and gigabytes smaller
REQUIREMENTS = {
    "marian": (TORCH, "numpy==2.4.6", "transformers==5.23.0", "sentencepiece==0.2.3"),
    "gpt": (TORCH, "numpy==2.4.6"),
    "joeynmt": (TORCH, "numpy==2.4.6", "joeynmt==2.3.0", "importlib_metadata"),
    "eole": (TORCH, "numpy==2.4.6", "eole==0.6.4", "aiohttp"),
    "ctranslate2": ("numpy==2.4.6", "ctranslate2==4.8.5", "sentencepiece==0.2.3"),
}


def work_folder(given: str | None) -> Path:
    """The folder for environments and what toolkits exchange: the given one, else in the cache folder; made."""
    folder = Path(given or cache_directory() / "peers").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def interpreter(folder: Path, peer: str) -> Path:
    """The Python of a peer's environment in ``folder``, which is made and filled when it is not there yet.

    Or the one that the variable TRANSFORMER_JAX_PEER_PYTHON names, for machines where nothing can be installed.
    Raises: UserError when that is no program.
    """
    if named := os.environ.get("TRANSFORMER_JAX_PEER_PYTHON"):
        if shutil.which(named) is None:
            raise UserError(f"TRANSFORMER_JAX_PEER_PYTHON is {named}, which is no program.")
        return Path(named)
    home = folder / "environments" / peer
    python, done = home / "bin" / "python", home / "installed.txt"
    wanted = "\n".join(REQUIREMENTS[peer])
    if not done.exists() or done.read_text() != wanted:
        print(f"installing {peer}: {' '.join(REQUIREMENTS[peer])}", flush=True)
        run([sys.executable, "-m", "venv", "--clear", str(home)], folder / f"{peer}-install.log")
        install = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[peer]]
        run(install, folder / f"{peer}-install.log")
        done.write_text(wanted)
    return python


def clean_environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without what it was told about its own devices, and with settings."""
    kept = {name: value for name, value in os.environ.items() if name != "TRANSFORMER_JAX_PREPARED"}
    path = filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")))
    return {**kept, **(settings or {}), "PYTHONPATH": os.pathsep.join(path)}


def run(command: Sequence[str], log: Path, settings: Mapping[str, str] | None = None) -> None:
    """Runs a command with its output in ``log``, without what this process was told about its own devices.

    Args: settings: environment variables for it.

    Raises: UserError when it fails, with the end of the log.
    """
    environment = clean_environment(settings)
    # PyTorch may compile for a quarter of an hour before anything else is said.
    print(f"running {' '.join(Path(part).name for part in command[:3])}; its output is in {log}", flush=True)
    with log.open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise UserError(f"{' '.join(command[:4])} … failed with status {done.returncode}; see {log}:\n{end}")

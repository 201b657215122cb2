"""Each file of a checkpoint damaged in turn: the run must name it, go on from the one before, and end the same."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from experiments.survival.tiny_run import contents, copy_run, finish
from transformer_jax.training.saved_steps import SavedSteps


def flip(file: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    """The last byte lost."""
    file.write_bytes(file.read_bytes()[:-1])


def remove(file: Path) -> None:
    file.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {"bit flip": flip, "truncation": truncate, "missing file": remove}


@dataclass(frozen=True)
class Damaged:
    """A damage, and whether the run named the checkpoint, set it aside, and ended the same."""

    file: str
    damage: str
    named: bool
    set_aside: bool
    same: bool

    @property
    def survived(self) -> bool:
        return self.named and self.set_aside and self.same


def torture(folder: Path, untouched: Path, pool: Executor) -> list[Damaged]:
    """Damages the newest checkpoint of copies of a complete run, one file and one way in each, and continues them."""
    newest = SavedSteps(untouched / "checkpoints").steps()[-1]
    files = [file for file in sorted((untouched / "checkpoints" / str(newest)).rglob("*")) if file.is_file()]
    names = [str(file.relative_to(untouched / "checkpoints" / str(newest))) for file in files]
    wanted = contents(untouched)

    def one(job: tuple[int, str, str]) -> Damaged:
        index, name, damage = job
        run = copy_run(untouched, folder / f"damaged-{index}")
        DAMAGES[damage](run / "checkpoints" / str(newest) / name)
        log = run.with_suffix(".log")
        with log.open("w") as stream:
            statuses = finish(run, 1, stream)
        named = f"Checkpoint {newest} is damaged" in log.read_text()
        aside = (run / "checkpoints" / f"damaged-{newest}").is_dir()
        return Damaged(name, damage, named, aside, not any(statuses) and contents(run) == wanted)

    jobs = [(i, name, damage) for i, (name, damage) in enumerate((n, d) for n in names for d in DAMAGES)]
    return list(pool.map(one, jobs))

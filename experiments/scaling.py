"""Compares the formulas of docs/scaling.md with what XLA compiles, without running anything.

    JAX_NUM_CPU_DEVICES=8 python experiments/scaling.py base big 1B

For each model and mesh: bytes a device holds and sends, by formula and as compiled. Needs eight devices, which a CPU
can pretend to have. Takes a minute or so a model.
"""

from experiments import command_line
from transformer_jax.errors import UserError

MESHES = ((8, 1, 1), (1, 8, 1), (2, 1, 4), (2, 2, 2))


def main(arguments: list[str]) -> None:
    import jax

    from transformer_jax.analysis.scaling import SIZES, Rows, format_comparison
    from transformer_jax.sharding import MeshConfig, make_mesh

    if unknown := sorted(set(arguments) - set(SIZES)):
        raise UserError(f"{unknown[0]}: there is no such model; give some of {', '.join(SIZES)}.")
    if jax.device_count() != 8:
        raise UserError(f"There are {jax.device_count()} devices; set JAX_NUM_CPU_DEVICES=8 and JAX_PLATFORMS=cpu.")
    for size in arguments:
        for mesh in MESHES:
            print(format_comparison(size, make_mesh(MeshConfig(*mesh)), Rows(32, 128, 128)), flush=True)


if __name__ == "__main__":
    command_line.run_main(main, ("SIZE...",))

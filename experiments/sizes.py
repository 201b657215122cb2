"""What a language model needs: parameters, FLOPs, and memory on each device of a mesh that need not be there.

    python experiments/sizes.py --config=configs/language_model.py:gpt3-175b --devices=1024 \\
        --config.mesh.fsdp=16 --config.mesh.tensor=8

Everything follows from shapes; nothing is allocated.
"""

from absl import flags

from experiments import command_line

CONFIG = command_line.define_config()
DEVICES = flags.DEFINE_integer("devices", 1, "how many; a mesh axis of -1 takes what the others leave", lower_bound=1)


def main(arguments: list[str]) -> None:
    from transformer_jax.analysis.sizes import format_sizes, language_model_sizes

    print(format_sizes(language_model_sizes(CONFIG.value, DEVICES.value)))


if __name__ == "__main__":
    command_line.run_main(main)

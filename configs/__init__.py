"""What to run: one file an experiment family, get_config(variant) -> ConfigDict. Imports nothing of the package."""

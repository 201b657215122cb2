"""Sweeps: a study is a folder of ordinary runs, which any number of worker processes train and Optuna chooses."""

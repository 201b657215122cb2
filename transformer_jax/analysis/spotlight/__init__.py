"""Spotlight: one self-contained page in which a reader sees where a model looks, and what else it might have said."""

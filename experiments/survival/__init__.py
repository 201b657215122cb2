"""Kills and damages that runs must survive, and what surviving costs."""

"""The commands: thin entry points that people type, and studies."""

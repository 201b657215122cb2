"""Measurements that take processes of their own: starting up, scans over a key of a config, and all in turn."""

"""Benchmarks: how long a training step takes, by itself and beside the published code. See README.md."""

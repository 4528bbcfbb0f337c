"""Measurements of the library on a CPU; ``python -m benchmarks`` writes docs/benchmarks.json and docs/benchmarks.md."""

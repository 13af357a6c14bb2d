"""Benchmarks of bitwright beside float torch and other libraries: ``make bench``, results in docs/benchmarks.md."""

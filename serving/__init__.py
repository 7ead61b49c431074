"""A running Triton Inference Server from a model repository: ``python -m serving``."""

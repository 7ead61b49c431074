"""Trained sequence model in, smaller and faster and proven-equivalent model repository out."""

import os

# ONNX Runtime starts its telemetry client when it is imported; this product sends nothing anywhere.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

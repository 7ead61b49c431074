"""Trained sequence model in, smaller and faster and proven-equivalent model repository out."""

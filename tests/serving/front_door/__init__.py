"""The front door: real nginx, real Tritons."""

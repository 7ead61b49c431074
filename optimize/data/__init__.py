"""Data sets: where they are looked for, how they are split. Nothing here imports torch."""

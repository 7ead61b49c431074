"""Low precision, one way per file, and the proof of how much of it really happened."""

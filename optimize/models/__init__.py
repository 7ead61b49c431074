"""The networks: one forward each, used by training, export and tests alike."""

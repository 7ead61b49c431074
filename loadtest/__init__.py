"""Load tests: requests arrive at a set rate, whatever the server does, and thresholds decide the exit status."""

"""Load tests: requests arrive at a set rate, and streams in real time, whatever the server does.

locust -f loadtest/locustfile.py     load at a rate, thresholds decide the exit status
python -m loadtest.capacity          the most real-time streams, or requests per second, that a server sustains
python -m loadtest.streams           streams that go on for long, and streams that never end
python -m loadtest.ab                the live version and its candidate: metric, latency, and which of them to keep
python -m loadtest.repeats           what the response cache does for prompts that come again
python -m loadtest.chaos             a server that is broken, again and again, under streams
python -m loadtest.soak              mixed load for long: does anything grow?
python -m loadtest.bench             what serving costs, stage by stage
python -m loadtest.compare           two reports: is the later one worse?
python -m loadtest.peers             the same models on other servers
"""

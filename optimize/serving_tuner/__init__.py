"""Search the serving settings under which a running Triton gives the most within a latency limit.

space.py         what can be chosen, and how a choice becomes a ServingSpec
proving_ground.py  a Triton that takes one candidate after the other, and the load that measures it
search.py        Optuna's study over the space, kept in a journal so that it can go on after an interruption
duel.py          the best against the present settings, in turns: whether it is really better
result.py        what was found: front, table, JSON and plot
"""

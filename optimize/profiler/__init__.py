"""Where the time of a model goes, operator by operator and layer by layer, beside what the machine would allow.

    python -m optimize.profiler --model load_forecast                      # every stage in artifacts/
    python -m optimize.profiler --model speech --stage student_onnx_int8 --batch 8

The artefacts are those of ``python -m optimize.export``. Single requests are real ones of the test data, and so are
batches. An operator's limit is the larger of two times: that of its multiply-accumulates at the rate of the runtime's
own product of large matrices, and that of its bytes at the bandwidth of the cache, or the memory, that holds them. What
other arithmetic costs (exp, tanh, sums) is not in it. Everything is of one thread on this machine, now.

A profile costs time itself. So each is taken beside the same model unprofiled, whose time is what the parts add up to:
what is too much is deducted from every call alike, and the p50 of both and the deduction are told.
"""

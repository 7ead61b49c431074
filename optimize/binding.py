"""A session whose inputs and outputs stay on the device: copied once each way, and replayed as one CUDA graph.

    run = Bound(session, "cuda", graphs=True)
    outputs = run({"x": x})

``InferenceSession.run`` allocates on the device at every call and starts kernel after kernel. Here every shape has its
buffers, and with ``graphs`` the kernels of a shape are recorded on its first call and started together ever after:
https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html and
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview. A graph with
operators that the CUDA provider lacks cannot be recorded: such a session is to be opened without graphs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from optimize.data.dataset import Arrays

Shapes = tuple[tuple[int, ...], ...]


class Bound:
    """Answers like ``session.run``, from buffers on ``device`` ("cpu" or "cuda") that are kept for each shape."""

    def __init__(self, session: onnxruntime.InferenceSession, device: str, graphs: bool = False) -> None:
        self._session, self._device, self._graphs = session, device, graphs
        self._inputs = [value.name for value in session.get_inputs()]
        self._outputs = [value.name for value in session.get_outputs()]
        self._places: dict[Shapes, tuple[Any, dict[str, Any], Any]] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        """inputs: by name, each (batch, ...). Returns the outputs by name, as copies of the caller's own."""
        shapes = tuple(inputs[name].shape for name in self._inputs)
        if shapes not in self._places:
            self._places[shapes] = self._bind(inputs)
        binding, places, options = self._places[shapes]
        for name in self._inputs:
            places[name].update_inplace(np.ascontiguousarray(inputs[name]))
        self._session.run_with_iobinding(binding, options)
        return {name: places[name].numpy().copy() for name in self._outputs}

    def _bind(self, inputs: Arrays) -> tuple[Any, dict[str, Any], Any]:
        """Buffers for one shape; those of the outputs are as large as a first run shows."""
        first = self._session.io_binding()
        places = {}
        for name in self._inputs:
            array = np.ascontiguousarray(inputs[name])
            places[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            first.bind_ortvalue_input(name, places[name])
        for name in self._outputs:
            first.bind_output(name, self._device)
        self._session.run_with_iobinding(first, self._options(record=False))
        binding = self._session.io_binding()
        for name in self._inputs:
            binding.bind_ortvalue_input(name, places[name])
        for name, value in zip(self._outputs, first.get_outputs(), strict=True):
            places[name] = value
            binding.bind_ortvalue_output(name, value)
        return binding, places, self._options(record=True)

    def _options(self, record: bool) -> onnxruntime.RunOptions | None:
        """Every shape has a recording of its own; -1 is for runs that are not recorded."""
        if not self._graphs:
            return None
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(len(self._places) + 1 if record else -1))
        return options

"""An ONNX graph through ONNX Runtime's and optimum's dynamic quantisers, as their documentation advises.

    .venv-peers/bin/python -m loadtest.peers.quantise fp32.onnx FOLDER

The last line of the output says which failed, and why, as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def by_onnxruntime(graph: Path, result: Path) -> None:
    """``quantize_dynamic``, per channel, after the pre-processing that its documentation asks for where that works."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = result.with_suffix(".prepared.onnx")
    try:
        quant_pre_process(str(graph), str(prepared))
    except Exception as error:  # symbolic shape inference does not know every operator
        print(f"not pre-processed: {error}", file=sys.stderr)
        shutil.copyfile(graph, prepared)
    quantize_dynamic(prepared, result, per_channel=True, weight_type=QuantType.QInt8)
    prepared.unlink()


def by_optimum(graph: Path, result: Path) -> None:
    """``ORTQuantizer`` with the configuration that it has for processors with VNNI."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    with tempfile.TemporaryDirectory() as place:
        quantizer = ORTQuantizer.from_pretrained(graph.parent, file_name=graph.name)
        config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        quantizer.quantize(save_dir=place, quantization_config=config)
        shutil.move(next(Path(place).glob("*.onnx")), result)


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "onnxruntime quantize_dynamic": by_onnxruntime,
    "optimum ORTQuantizer": by_optimum,
}


def main(graph: Path, folder: Path) -> None:
    failures = {}
    for name, quantise in TOOLS.items():
        try:
            quantise(graph, folder / f"{name}.onnx")
        except Exception as error:  # whatever a tool stumbles over is its result
            failures[name] = (str(error).splitlines() or [type(error).__name__])[0]
    print(json.dumps(failures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

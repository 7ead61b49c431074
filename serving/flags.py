"""The tritonserver command line, as one pure function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.config import ServerConfig
from serving.installation import Installation
from serving.ports import Ports

KEY_HEADER = "seqserve-key"
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")

# Triton 2.51 frees the record of a gRPC request that another thread may still use, once more than 8 are under way: with
# a thousand streams, or sixteen that press hard, it ended by SIGSEGV within seconds to minutes. Kept for reuse, records
# are never freed. Every one of 46,000 answers under such load was the right one.
_GRPC_RECORDS = 65_536

# A model's worker imports ONNX Runtime and warms up before it answers; on a busy machine the default 30 s is short.
_STUB_TIMEOUT_S = 120

# For who watches (--health-port), since they cost a fifth of the requests a second of 16 callers: quantiles of
# nv_inference_request_summary_us and its like, over the last minute; each with the error that is allowed.
_SUMMARIES = (
    "--metrics-config=summary_latencies=true",
    "--metrics-config=summary_quantiles=0.5:0.05,0.95:0.005,0.99:0.001",
)


def command_line(
    config: ServerConfig, installation: Installation, ports: Ports, models: Sequence[str], server_id: str, key: str
) -> list[str]:
    """Program and arguments that serve ``models`` of ``config.model_repository``.

    server_id: Triton's name for itself, by which the launcher recognises its own server; also the prefix of its
    shared memory regions. key: the secret that opens the restricted APIs. Models are loaded only on request, so that
    nothing half-written is ever picked up; configurations are taken literally (nothing is completed), so that what
    loads here loads in any other Triton.
    """
    restricted = f"{','.join(RESTRICTED)}:{KEY_HEADER}={key}"
    command = [
        str(installation.binary),
        f"--id={server_id}",
        f"--model-repository={config.model_repository.resolve()}",
        "--model-control-mode=explicit",
        f"--grpc-infer-allocation-pool-size={_GRPC_RECORDS}",
        *(f"--load-model={model}" for model in models),
        "--disable-auto-complete-config",
        f"--http-address={config.host}",
        f"--grpc-address={config.host}",
        f"--metrics-address={config.host}",
        f"--http-port={ports.http_port}",
        f"--grpc-port={ports.grpc_port}",
        f"--metrics-port={ports.metrics_port}",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        f"--exit-timeout-secs={config.drain_timeout_s}",
        *(_SUMMARIES if config.health_port is not None else ()),
        *_directory("--backend-directory", installation.backends),
        *_directory("--cache-directory", installation.caches),
    ]
    if config.cache_mb:
        command.append(f"--cache-config=local,size={config.cache_mb * 2**20}")
    if config.trace_file is not None:  # off until `python -m serving.trace` asks; the file cannot be named later
        command.append(f"--trace-config=triton,file={config.trace_file.resolve()}")
        command.append("--trace-config=level=OFF")
    if installation.embedded:
        command.append(f"--backend-config=python,shm-region-prefix-name={server_id}_")
        command.append(f"--backend-config=python,stub-timeout-seconds={_STUB_TIMEOUT_S}")
    return command


def _directory(flag: str, path: Path | None) -> list[str]:
    return [] if path is None else [f"{flag}={path}"]

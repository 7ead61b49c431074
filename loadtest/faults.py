"""What `python -m loadtest.chaos` does to a server, a function for each fault; each returns what came of it, in words.

A fault that asks the server something which must not be answered raises ``WrongAnswer`` if it is: that is the only way
to fail here. Whether the streams beside it noticed is for them to say (``checked.py``).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import clients
from clients.errors import ClientError
from clients.ledger import draw_sequence
from clients.signature import DTYPES, Array, Signature
from loadtest.census import SHARED_MEMORY
from loadtest.checked import Utterance, differing
from loadtest.hosted import Hosted
from serving.heartbeats import Heartbeat, Heartbeats

ANSWER_S = 60.0  # for an answer or a refusal, in the middle of whatever else goes on
ENDLESS = 4  # streams without END at a time
UNREAD = 200  # chunks whose answers nobody reads
LEFT_FREE = 0.5  # of shared memory, whatever the limit: this machine may have other uses for it
_HELD_S = 2.0

Inputs = dict[str, Array]


class WrongAnswer(Exception):
    """The server answered what it must refuse, or otherwise than it must."""


@dataclass(frozen=True)
class Scene:
    """What the faults have to work with. signatures: of the models to send garbage to. ballast_bytes: the most that
    shared memory is filled with."""

    hosted: Hosted
    signature: Signature
    signatures: list[Signature]
    utterances: list[Utterance]
    random: Random
    ballast_bytes: int

    @property
    def chunk(self) -> Inputs:
        return self.utterances[0].chunks[0]


def kill_worker(scene: Scene) -> str:
    return _signal_worker(scene, signal.SIGKILL)


def stop_worker(scene: Scene) -> str:
    return _signal_worker(scene, signal.SIGSTOP)


def kill_server(scene: Scene) -> str:
    """A whole replica, workers and all else that it left without a parent ending by themselves."""
    servers = scene.hosted.servers()
    if not servers:
        return "no server was there to be killed"
    server = scene.random.choice(servers)
    os.kill(server.pid, signal.SIGKILL)
    return f"killed tritonserver {server.pid}, one of {len(servers)}"


def kill_client(scene: Scene) -> str:
    """In the middle of its stream."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, scene.hosted.grpc, scene.signature.model, scene.chunk)
    client = context.Process(target=stream_for_ever, args=arguments, name="chaos-client", daemon=True)
    client.start()
    theirs.close()  # or the end of a client that ends at once would not be seen
    with ours:
        try:
            talked = ours.poll(ANSWER_S) and bool(ours.recv())
        except EOFError:
            talked = False
    client.kill()
    client.join()
    return f"killed a client {'in its stream' if talked else 'that had no stream'}"


def drop_ends(scene: Scene) -> str:
    """Streams that never end; their places are free again after the model's idle limit."""
    begun = 0
    with clients.connect(scene.hosted.grpc) as client:
        for _ in range(ENDLESS):
            with suppress(ClientError), client.stream(scene.signature.model, deadline_s=ANSWER_S) as session:
                session.send(scene.chunk)
                begun += 1
    return f"{begun} streams without END"


def reuse_ids(scene: Scene) -> str:
    """A second START of the same id begins from zeros, in place of the first stream."""
    utterance, sequence = scene.random.choice(scene.utterances), draw_sequence()
    with asking(scene.hosted.grpc) as ask:
        said = [
            ask(scene.signature.model, utterance.chunks[place], sequence_id=sequence, sequence_start=not place)
            for place in (0, 1, 0, 1)
        ]
    expected = [utterance.expected[place] for place in (0, 1, 0, 1)]
    if any(isinstance(each, InferenceServerException) for each in said):
        return "its streams were disturbed by another fault"
    if any(differing(each, right) for each, right in zip(said, expected, strict=True)):
        raise WrongAnswer("a stream that began with the id of another was not answered as a new one")
    return "the second began from zeros"


def send_garbage(scene: Scene) -> str:
    """Every kind, to every model, and every one must be refused."""
    refused = 0
    with asking(scene.hosted.grpc) as ask:
        for signature in scene.signatures:
            for what, inputs, options in garbage(signature):
                said = ask(signature.model, inputs, **options)
                if is_answer(said):
                    raise WrongAnswer(f"model '{signature.model}' answered a request with {what}")
                refused += 1
    return f"{refused} requests refused"


def send_noise(scene: Scene) -> str:
    """Random bytes to both ports."""
    for address in (scene.hosted.http, scene.hosted.grpc):
        host, _, port = address.rpartition(":")
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=_HELD_S) as connection:
            connection.sendall(scene.random.randbytes(scene.random.randint(1, 100_000)))
            connection.recv(1000)
    return "random bytes sent"


def fill_shared_memory(scene: Scene) -> str:
    """With one file, for a moment."""
    status = os.statvfs(SHARED_MEMORY)
    size = min(scene.ballast_bytes, int(LEFT_FREE * status.f_bavail * status.f_frsize))
    ballast = Path(SHARED_MEMORY, f"seqserve-ballast-{os.getpid()}")
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        time.sleep(_HELD_S)
    finally:
        ballast.unlink(missing_ok=True)
    return f"{size / 2**20:.0f} MiB taken and given back"


def read_slowly(scene: Scene) -> str:
    """A client that sends, and reads no answer for a while."""
    answers: SimpleQueue[Any] = SimpleQueue()
    with closing(triton_grpc.InferenceServerClient(scene.hosted.grpc)) as client:
        release_s = time.monotonic() + _HELD_S

        def hold(result: Any, error: Any) -> None:
            time.sleep(max(release_s - time.monotonic(), 0.0))
            answers.put(error or result)

        client.start_stream(hold)
        sequence = draw_sequence()
        with suppress(InferenceServerException):
            for place in range(UNREAD):
                client.async_stream_infer(
                    scene.signature.model, tensors(scene.chunk), sequence_id=sequence, sequence_start=not place
                )
        came, end_s = 0, time.monotonic() + ANSWER_S
        with suppress(Empty):
            while came < UNREAD and not isinstance(answers.get(timeout=max(end_s - time.monotonic(), 0)), Exception):
                came += 1
        client.stop_stream(cancel_requests=True)
    return f"{came} of {UNREAD} answers read late"


# In the order of the first round, which every run begins with; after that they are drawn.
FAULTS: dict[str, Callable[[Scene], str]] = {
    "drop_ends": drop_ends,
    "kill_worker": kill_worker,
    "send_garbage": send_garbage,
    "kill_client": kill_client,
    "stop_worker": stop_worker,
    "reuse_ids": reuse_ids,
    "fill_shared_memory": fill_shared_memory,
    "send_noise": send_noise,
    "kill_server": kill_server,
    "read_slowly": read_slowly,
}
LOSING = frozenset({"kill_worker", "stop_worker", "kill_server"})  # streams end with them


def garbage(signature: Signature) -> Iterator[tuple[str, Inputs | list[triton_grpc.InferInput], dict[str, Any]]]:
    """What is wrong, the request, and its options: every input wrong in its dtype, shape and values, then the rest."""
    batch = 1 if signature.max_batch else 0
    good: Inputs = {}
    for tensor in signature.inputs:
        shape = [1] * batch + [max(size, 1) for size in tensor.shape[batch:]]
        if tensor.datatype in DTYPES and tensor.datatype != "BYTES":
            good[tensor.name] = np.ones(shape, DTYPES[tensor.datatype])
            if tensor.datatype.startswith("FP"):  # never twice the same: Triton's cache takes errors for empty answers
                good[tensor.name] = np.random.default_rng().random(shape).astype(DTYPES[tensor.datatype])
    stream = signature.idle_limit_s is not None
    alone = {"sequence_id": draw_sequence(), "sequence_start": True, "sequence_end": True} if stream else {}
    for name, array in good.items():
        other = np.uint8 if array.dtype != np.uint8 else np.uint16
        yield f"'{name}' of a wrong dtype", good | {name: array.astype(other)}, alone
        yield f"'{name}' of a wrong rank", good | {name: array[..., None]}, alone
        short = tensors(good)
        (wrong,) = [each for each in short if each.name() == name]
        wrong._raw_content = array.tobytes()[:-1]
        yield f"a byte too few in '{name}'", short, alone
        if np.issubdtype(array.dtype, np.floating):
            for value in (np.nan, np.inf):
                spoilt = array.copy()
                spoilt.flat[-1] = value
                yield f"{value} in '{name}'", good | {name: spoilt}, alone
        yield f"'{name}' missing", {key: value for key, value in good.items() if key != name}, alone
    yield "an unknown input", good | {"no_such_input": np.ones((1, 1), np.float32)}, alone
    if stream:
        yield "no sequence id", good, {"sequence_start": True}
        yield "no START", good, {"sequence_id": draw_sequence()}
    if batch:
        rows = 2 if stream else signature.max_batch + 1
        many = {name: np.concatenate([array] * rows) for name, array in good.items()}
        yield f"{rows} rows", many, alone


def tensors(inputs: Inputs | list[triton_grpc.InferInput]) -> list[triton_grpc.InferInput]:
    """The inputs as Triton's own client has them."""
    if isinstance(inputs, list):
        return inputs
    found = []
    for name, array in inputs.items():
        found.append(triton_grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        found[-1].set_data_from_numpy(array)
    return found


def stream_for_ever(pipe: Any, address: str, model: str, chunk: Inputs) -> None:
    """The client that is killed: says so when it has begun."""
    with clients.connect(address) as client, client.stream(model, deadline_s=ANSWER_S) as session:
        session.send(chunk)
        pipe.send(True)
        while True:
            session.send(chunk)


def is_answer(said: Any) -> bool:
    """Triton 2.51 keeps errors in its response cache, as answers without outputs, which the clients refuse too."""
    return bool(said) and not isinstance(said, InferenceServerException)


@contextmanager
def asking(address: str) -> Iterator[Callable[..., Any]]:
    """A function that asks as no client of this project would; it returns the outputs by name, or the error."""
    with closing(triton_grpc.InferenceServerClient(address)) as client:

        def ask(model: str, inputs: Inputs | list[triton_grpc.InferInput], **options: Any) -> Any:
            try:
                result = client.infer(model, tensors(inputs), client_timeout=ANSWER_S, **options)
            except InferenceServerException as error:
                return error
            return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

        yield ask


def _signal_worker(scene: Scene, number: signal.Signals) -> str:
    workers: list[Heartbeat] = []
    for name in scene.hosted.ids():
        workers += [beat for beat in Heartbeats(name).read() if beat.model == scene.signature.model]
    if not workers:
        return "no worker was there"
    worker = scene.random.choice(workers)
    with suppress(ProcessLookupError):
        os.kill(worker.pid, number)
    return f"{number.name} to worker {worker.pid} of {worker.model}, which held {worker.streams} streams"

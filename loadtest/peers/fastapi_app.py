"""A model behind FastAPI, in torch or ONNX Runtime: raw bytes in, raw bytes out.

    python -m uvicorn --factory loadtest.peers.fastapi_app:app --workers 2

in the peers' environment. ``threadpool`` is what FastAPI's documentation advises for work that blocks, a plain ``def``;
else it runs in the event loop, which suits a worker whose one thread is busy anyway.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response

from loadtest.peers.wire import Settings


async def body_of(request: Request) -> bytes:
    body: bytes = await request.body()
    return body


def app() -> FastAPI:
    """The application of one worker, which the environment describes."""
    settings = Settings.read()
    run = settings.runner()

    def answer(body: bytes) -> Response:
        outputs = run(settings.arrays(body))
        return Response(b"".join(output.tobytes() for output in outputs), media_type="application/octet-stream")

    def pooled(body: Annotated[bytes, Depends(body_of)]) -> Response:
        return answer(body)

    async def inline(request: Request) -> Response:
        return answer(await request.body())

    made = FastAPI()
    made.add_api_route("/", pooled if settings.threadpool else inline, methods=["POST"], response_model=None)
    return made

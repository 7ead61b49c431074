"""The same model by other people's tools: torch's own, ONNX Runtime's and optimum's quantisers, FastAPI and BentoML.

    make peers                             # python -m loadtest.peers, with the peers' environment in .venv-peers

quantise.py, fastapi_app.py and bentoml_service.py run in that environment, all else in the project's.
"""

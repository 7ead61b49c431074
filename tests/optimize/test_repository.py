"""Versions appear complete or not at all, whatever interrupts; a running Triton follows without losing a request."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc
from onnx import TensorProto, helper, numpy_helper

from optimize import rollout, version_folder
from optimize.repository import Published, PublishError, publish, recover, stale_configs
from optimize.specs import ModelSpec, ServingSpec, TensorSpec
from optimize.triton_config import from_config, parse_text, to_config, to_text
from optimize.validator import UnfitModelError
from optimize.version_folder import versions
from serving import running
from serving.config import ServerConfig
from serving.launcher import Server

SPEC = ModelSpec(
    name="scaled",
    inputs=(TensorSpec("x", "float32", (4,)),),
    outputs=(TensorSpec("y", "float32", (4,)),),
    max_batch=8,
)
SERVING = ServingSpec()


def _scale(path: Path, factor: float, width: int = 4) -> Path:
    """y = factor * x. A width other than 4 is a mistake that only ONNX Runtime's shape inference finds."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.full(width, factor, np.float32), "factor")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones included, but for the lock."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != ".lock"}


# On disk, without a server.


def test_a_version_is_laid_out_as_triton_wants_it(tmp_path: Path) -> None:
    model = _scale(tmp_path / "m.onnx", 2.0)
    root = tmp_path / "model_repository"
    published = publish(root, SPEC, SERVING, model, {"manifest.json": b"{}", "README.md": b"# card"})
    assert published == Published(root / "scaled/1", 1, published.sha256, reused=False)
    assert _snapshot(root) == {
        "scaled/config.pbtxt": to_text(to_config(SPEC, SERVING)).encode(),
        "scaled/1/model.onnx": model.read_bytes(),
        "scaled/1/config.pbtxt": to_text(to_config(SPEC, SERVING)).encode(),
        "scaled/1/manifest.json": b"{}",
        "scaled/1/README.md": b"# card",
    }
    assert from_config(parse_text((root / "scaled/config.pbtxt").read_text())) == (SPEC, SERVING)


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    model = _scale(tmp_path / "m.onnx", 2.0)
    first = publish(tmp_path / "r", SPEC, SERVING, model, {"manifest.json": b"first"})
    before = _snapshot(tmp_path / "r")
    assert publish(tmp_path / "r", SPEC, SERVING, model, {"manifest.json": b"second"}) == replace(first, reused=True)
    assert _snapshot(tmp_path / "r") == before


def test_another_model_or_another_deployment_is_a_new_version(tmp_path: Path) -> None:
    root, config = tmp_path / "r", tmp_path / "r/scaled/config.pbtxt"
    publish(root, SPEC, SERVING, _scale(tmp_path / "m.onnx", 2.0))
    inode = config.stat().st_ino
    assert publish(root, SPEC, SERVING, _scale(tmp_path / "m.onnx", 3.0)).version == 2
    assert config.stat().st_ino == inode, "an unchanged configuration must not be written again"
    assert publish(root, SPEC, replace(SERVING, instances=2), tmp_path / "m.onnx").version == 3
    assert from_config(parse_text(config.read_text()))[1].instances == 2


def test_only_the_newest_versions_stay(tmp_path: Path) -> None:
    for factor in range(5):
        publish(tmp_path / "r", SPEC, SERVING, _scale(tmp_path / "m.onnx", factor))
    assert versions(tmp_path / "r/scaled") == [3, 4, 5]
    publish(tmp_path / "r", SPEC, SERVING, _scale(tmp_path / "m.onnx", 9.0), keep=1)
    assert versions(tmp_path / "r/scaled") == [6]


def test_a_version_that_a_server_has_loaded_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "ready_versions", lambda servers, model: {1})
    for factor in range(4):
        publish(tmp_path / "r", SPEC, SERVING, _scale(tmp_path / "m.onnx", factor), keep=2)
    assert versions(tmp_path / "r/scaled") == [1, 3, 4]


def test_an_unfit_model_leaves_no_trace(tmp_path: Path) -> None:
    model = onnx.load(_scale(tmp_path / "m.onnx", 2.0))
    model.ir_version = 11
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnfitModelError, match="IR version 11"):
        publish(tmp_path / "r", SPEC, SERVING, tmp_path / "m.onnx")
    assert not (tmp_path / "r/scaled").exists()


@pytest.mark.parametrize("name", ["../escape", "model.onnx", "config.pbtxt", ".hidden", "a/b", ""])
def test_extra_files_have_plain_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(PublishError, match="another plain file name"):
        publish(tmp_path / "r", SPEC, SERVING, _scale(tmp_path / "m.onnx", 2.0), {name: b""})


def test_a_full_disk_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "r", SPEC, SERVING, _scale(tmp_path / "m.onnx", 2.0))
    before = _snapshot(tmp_path / "r")

    def half_a_copy(source: Path, destination: Path) -> None:
        destination.write_bytes(source.read_bytes()[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(destination))

    monkeypatch.setattr(shutil, "copyfile", half_a_copy)
    with pytest.raises(PublishError, match=r"No space left on device .*nothing was changed"):
        publish(tmp_path / "r", SPEC, SERVING, _scale(tmp_path / "m.onnx", 3.0))
    assert _snapshot(tmp_path / "r") == before


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"No such file or directory \(.*missing\.onnx\)"):
        publish(tmp_path / "r", SPEC, SERVING, tmp_path / "missing.onnx")
    assert _snapshot(tmp_path / "r") == {}


@pytest.mark.parametrize("place", ["file", "/proc/no_such_place"])
def test_an_unwritable_repository_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / place
    with pytest.raises(PublishError, match=f"cannot publish 'scaled' in '{root}'"):
        publish(root, SPEC, SERVING, _scale(tmp_path / "m.onnx", 2.0))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_repository_is_named(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir(mode=0o555)
    with pytest.raises(PublishError, match="Permission denied"):
        publish(tmp_path / "r", SPEC, SERVING, _scale(tmp_path / "m.onnx", 2.0))


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("first_publication", [True, False])
def test_whenever_a_publisher_is_killed_the_next_one_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_publication: bool
) -> None:
    """Killed at the first step that reaches the disk, then at the second, and so on until one gets through."""
    root = tmp_path / "r"
    if not first_publication:
        publish(root, SPEC, SERVING, _scale(tmp_path / "m.onnx", 2.0))
    before = _snapshot(root)
    model, changed = _scale(tmp_path / "new.onnx", 3.0), replace(SERVING, instances=2)
    sync = version_folder._sync
    steps = 0
    while True:
        left = steps

        def one_step(path: Path) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            sync(path)

        with monkeypatch.context() as patch:
            patch.setattr(version_folder, "_sync", one_step)
            patch.setattr(version_folder, "recover", lambda folder: False)  # a killed process cleans up nothing
            try:
                publish(root, SPEC, changed, model, {"manifest.json": b"{}"})
                break
            except Killed:
                steps += 1
        for version in versions(root / "scaled"):
            assert onnx.load(root / f"scaled/{version}/model.onnx").graph.node, "a visible version is complete"
        recover(root)
        assert _snapshot(root) == before
    assert steps >= 6, "staging, journal, configuration and version each reach the disk"
    assert versions(root / "scaled")[-1] == (1 if first_publication else 2)


def test_an_interrupt_is_mended_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(servers: object, model: str, version: int) -> None:
        raise KeyboardInterrupt

    publish(tmp_path / "r", SPEC, SERVING, _scale(tmp_path / "m.onnx", 2.0))
    before = _snapshot(tmp_path / "r")
    monkeypatch.setattr(rollout, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "r", SPEC, replace(SERVING, instances=2), _scale(tmp_path / "m.onnx", 3.0))
    assert _snapshot(tmp_path / "r") == before


def test_publishers_exclude_each_other(tmp_path: Path) -> None:
    results: list[Published] = []

    def publish_three(start: int) -> None:
        for factor in range(start, start + 3):
            model = _scale(tmp_path / f"{factor}.onnx", factor)
            results.append(publish(tmp_path / "r", SPEC, SERVING, model, keep=10))

    publishers = [threading.Thread(target=publish_three, args=(start,)) for start in (0, 10)]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join()
    assert sorted(result.version for result in results) == versions(tmp_path / "r/scaled") == [1, 2, 3, 4, 5, 6]
    assert len({result.sha256 for result in results}) == 6


def test_stale_configs_are_named(tmp_path: Path) -> None:
    other = replace(SPEC, name="other")
    publish(tmp_path, SPEC, SERVING, _scale(tmp_path / "m.onnx", 2.0))
    assert stale_configs(tmp_path, [(SPEC, SERVING)]) == []
    publish(tmp_path, SPEC, replace(SERVING, threads=2), _scale(tmp_path / "m.onnx", 2.0), candidate=True)
    assert stale_configs(tmp_path, [(SPEC, SERVING)]) == [], "a candidate is nobody's to commit"
    [changed] = stale_configs(tmp_path, [(SPEC, replace(SERVING, threads=2))])
    assert changed.startswith("scaled: config.pbtxt is not what the recipe generates")
    missing, surplus = stale_configs(tmp_path, [(other, SERVING)])
    assert (missing.partition(";")[0], surplus.partition(";")[0]) == (
        "other: config.pbtxt is missing",
        "scaled: config.pbtxt belongs to no recipe",
    )


# With a real Triton that runs from the repository.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("published")
    publish(folder / "r", replace(SPEC, name="first"), SERVING, _scale(folder / "m.onnx", 1.0))
    with Server(ServerConfig(folder / "r", http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


@pytest.fixture
def root(server: Server) -> Path:
    return server.config.model_repository


@pytest.fixture
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    """A model of the test's own."""
    return replace(SPEC, name=str(request.function.__name__).removeprefix("test_"))


def _ask(client: tritonclient.grpc.InferenceServerClient, spec: ModelSpec) -> tuple[str, float]:
    """The version that answered and its factor."""
    tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    result = client.infer(spec.name, [tensor], client_timeout=30)
    return result.get_response().model_version, float(result.as_numpy("y")[0, 0])


@pytest.fixture
def client(server: Server) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        yield client


def test_no_request_is_lost_while_versions_change(
    tmp_path: Path, root: Path, spec: ModelSpec, server: Server, client: tritonclient.grpc.InferenceServerClient
) -> None:
    publish(root, spec, SERVING, _scale(tmp_path / "m.onnx", 1.0))
    assert _ask(client, spec) == ("1", 1.0)
    answers: list[tuple[str, float]] = []
    failures: list[Exception] = []
    asking, done = threading.Barrier(3), threading.Event()

    def keep_asking() -> None:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as own:
            answers.append(_ask(own, spec))
            asking.wait()
            while not done.is_set():
                try:
                    answers.append(_ask(own, spec))
                except Exception as error:
                    failures.append(error)

    askers = [threading.Thread(target=keep_asking) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        asking.wait(30)
        publish(root, spec, SERVING, _scale(tmp_path / "m.onnx", 2.0))
        assert _ask(client, spec) == ("2", 2.0)
        publish(root, spec, replace(SERVING, queue_delay_us=100), _scale(tmp_path / "m.onnx", 3.0))
        assert _ask(client, spec) == ("3", 3.0)
    finally:
        done.set()
        for asker in askers:
            asker.join()
    assert failures == []
    assert set(answers) <= {("1", 1.0), ("2", 2.0), ("3", 3.0)}


@pytest.mark.parametrize("damage", ["shapes", "bytes"])
def test_a_version_that_cannot_load_is_withdrawn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    spec: ModelSpec,
    server: Server,
    client: tritonclient.grpc.InferenceServerClient,
    damage: str,
) -> None:
    spec = replace(spec, name=f"refused_{damage}")
    publish(root, spec, SERVING, _scale(tmp_path / "m.onnx", 1.0))
    before, loads = _snapshot(root), server.log.read_text().count(f'"loading: {spec.name}:1"')
    model = _scale(tmp_path / "m.onnx", 2.0, width=3 if damage == "shapes" else 4)
    with monkeypatch.context() as patch:
        if damage == "bytes":
            model.write_bytes(model.read_bytes()[:60])
            patch.setattr(version_folder, "check", lambda config, path: None)  # the validator would have found it
        with pytest.raises(PublishError, match="was withdrawn, what was published before keeps serving") as caught:
            publish(root, spec, replace(SERVING, instances=2), model)
    assert "\n" not in str(caught.value)
    assert server.http in str(caught.value)
    assert _snapshot(root) == before
    assert _ask(client, spec) == ("1", 1.0)
    assert server.log.read_text().count(f'"loading: {spec.name}:1"') == loads, "the old version was left in peace"
    assert publish(root, spec, SERVING, _scale(tmp_path / "m.onnx", 3.0)).version == 2
    assert _ask(client, spec) == ("2", 3.0)


def test_a_first_version_that_cannot_load_leaves_nothing(
    tmp_path: Path, root: Path, spec: ModelSpec, client: tritonclient.grpc.InferenceServerClient
) -> None:
    with pytest.raises(PublishError, match="withdrawn"):
        publish(root, spec, SERVING, _scale(tmp_path / "m.onnx", 1.0, width=3))
    assert not (root / spec.name).exists()
    assert not client.is_model_ready(spec.name)
    publish(root, spec, SERVING, _scale(tmp_path / "m.onnx", 1.0))
    assert _ask(client, spec) == ("1", 1.0)


@pytest.mark.parametrize("fault", ["refuses", "is_gone"])
def test_all_servers_go_back_when_one_does_not_follow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    spec: ModelSpec,
    client: tritonclient.grpc.InferenceServerClient,
    fault: str,
) -> None:
    spec = replace(spec, name=f"one_{fault}")
    publish(root, spec, SERVING, _scale(tmp_path / "m.onnx", 1.0))
    before = _snapshot(root)
    [good] = running.find(root)
    bad = replace(good, key="wrong") if fault == "refuses" else replace(good, http="127.0.0.1:9")
    with monkeypatch.context() as patch:
        patch.setattr(running, "find", lambda repository: [good, bad])
        with pytest.raises(PublishError, match="withdrawn"):
            publish(root, spec, SERVING, _scale(tmp_path / "m.onnx", 2.0))
    assert _snapshot(root) == before
    assert _ask(client, spec) == ("1", 1.0)


def test_old_versions_go_but_the_live_one_stays(
    tmp_path: Path, root: Path, spec: ModelSpec, client: tritonclient.grpc.InferenceServerClient
) -> None:
    for factor in (1.0, 2.0):
        publish(root, spec, SERVING, _scale(tmp_path / "m.onnx", factor), keep=1)
    assert versions(root / spec.name) == [2]
    assert rollout.ready_versions(running.find(root), spec.name) == {2}
    assert _ask(client, spec) == ("2", 2.0)

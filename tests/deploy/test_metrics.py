"""Dashboard, alerts and autoscaler name only metrics and labels that there are, on the pages of real servers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import promql_parser
import pytest
import yaml

import clients
from serving.launcher import Server
from tests.deploy import manifests
from tests.deploy.conftest import pages

# Of nginx-prometheus-exporter 1.4, from its documentation; it does not run here.
EXPORTER = {
    "nginx_up", "nginx_connections_accepted", "nginx_connections_active", "nginx_connections_handled",
    "nginx_connections_reading", "nginx_connections_waiting", "nginx_connections_writing", "nginx_http_requests_total",
}  # fmt: skip
BY_PROMETHEUS = {"instance", "job", "namespace", "pod"}
DASHBOARD = json.loads((manifests.DEPLOY / "grafana" / "dashboard.json").read_text())
ALERTS = yaml.safe_load((manifests.DEPLOY / "prometheus" / "alerts.yml").read_text())


@pytest.fixture(scope="module")
def known(server: Server) -> dict[str, set[str]]:
    """The metrics there are, and their labels."""
    with clients.connect(server.grpc, protocol="grpc") as client, client.stream("listen") as session:
        for _ in range(2):
            client.infer("double_cached", {"x": np.ones((1, 4), np.float32)})
            session.send(np.ones(16, np.int16))
    found: dict[str, set[str]] = defaultdict(set)
    for name, labels in re.findall(r"^([a-z]\w*)(?:\{(.*)\})? ", pages(server), re.MULTILINE):
        found[name] |= set(re.findall(r'(\w+)="', labels)) | BY_PROMETHEUS
    return found | dict.fromkeys({"up", *EXPORTER}, BY_PROMETHEUS)


def dashboard_queries() -> list[str]:
    """As Grafana sends them, with its variables filled in."""
    targets = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*") for target in targets]


def alert_queries() -> list[str]:
    return [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


def adapter_queries() -> list[str]:
    (config,) = (
        each["data"]["config.yaml"] for each in manifests.objects(manifests.DEPLOY / "prometheus/adapter.yaml")
    )
    queries = []
    for rule in yaml.safe_load(config)["rules"]:
        series = rule["seriesQuery"].partition("{")[0]
        query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "namespace, pod")
        queries += [rule["seriesQuery"], query.replace("<<.LabelMatchers>>", 'pod=~".*"')]
    return queries


def asked(query: str) -> Iterator[tuple[str, set[str]]]:
    """Every metric of a query, with the labels that the query says of it."""
    selectors: list[promql_parser.VectorSelector] = []
    grouped: set[str] = set()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    assert selectors, query
    for selector in selectors:
        assert selector.name is not None, query
        yield selector.name, {matcher.name for matcher in selector.matchers.matchers} | grouped


@pytest.mark.parametrize("query", [*dashboard_queries(), *alert_queries(), *adapter_queries()])
def test_a_query_names_what_there_is(query: str, known: dict[str, set[str]]) -> None:
    for metric, labels in asked(query):
        assert metric in known, f"no such metric: {metric}"
        assert labels <= known[metric], f"{metric} has {known[metric]}"


def test_what_is_asked_is_found_out() -> None:
    query = 'sum by (a) (rate(some_total{b="c"}[1m])) / max by (a) (other)'
    assert list(asked(query)) == [("some_total", {"a", "b"}), ("other", {"a"})]


def test_events_that_are_asked_for_happen(known: dict[str, set[str]], server: Server) -> None:
    text = (manifests.DEPLOY / "grafana" / "dashboard.json").read_text() + " ".join(alert_queries())
    for event in re.findall(r'event!?=\\?"(\w+)', text):
        assert f'event="{event}"' in pages(server)


def test_the_autoscaler_asks_for_what_the_adapter_gives() -> None:
    scaler = manifests.kind("HorizontalPodAutoscaler", *manifests.KUBERNETES)
    (config,) = (
        each["data"]["config.yaml"] for each in manifests.objects(manifests.DEPLOY / "prometheus/adapter.yaml")
    )
    given = {rule["name"]["as"] for rule in yaml.safe_load(config)["rules"]}
    assert {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]} == given


def test_the_dashboard_is_in_order() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie on each other"
    assert max(x for x, _ in cells) < 24


def test_prometheus_scrapes_the_ports_there_are() -> None:
    jobs = yaml.safe_load((manifests.DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    assert targets == {"triton": ["pod:8002"], "door": ["pod:9113"], "prometheus": ["localhost:9090"]}
    pods = (manifests.DEPLOY / "prometheus" / "kubernetes.yml").read_text()
    names = {port["name"] for each in manifests.containers().values() for port in each["ports"]}
    assert set(re.search(r'regex: "([\w|-]+)"', pods)[1].split("|")) <= names  # type: ignore[index]


def test_promtool_agrees() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian, Ubuntu: apt install prometheus)")
    for kind, name in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        command = [promtool, "check", kind, str(manifests.DEPLOY / "prometheus" / name)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr

"""Checks the files in `deploy` and `.github` for what schemas do not know. `tests/api/deployment.rs` runs it.

    python check.py ROOT SETTING...

ROOT is the folder of the repository, and the SETTINGs are the variables that the gateway reads. Prints what is
wrong, and exits with 1 if anything is.
"""

import re
import sys
from pathlib import Path

import yaml

ROOT, SETTINGS = Path(sys.argv[1]), set(sys.argv[2:])
BINARY = "/usr/local/bin/gemini-concurrent-generation"
# How long the last results of jobs may take after the grace period: see docs/deployment.md.
LAST_RESULTS = 15
# Where the probes of Kubernetes go.
PROBES = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}

problems = []


def check(condition, problem):
    if not condition:
        problems.append(problem)


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


def seconds(text):
    return float(re.fullmatch(r"(\d+)s", text)[1])


def check_compose():
    services = read("deploy/compose.yaml")["services"]
    gateways = {name: it for name, it in services.items() if it["image"] == "gemini-concurrent-generation"}
    check(len(gateways) == 2, "compose: not two gateways")
    nginx = (ROOT / "deploy/nginx/nginx.conf").read_text()
    idle = seconds(re.search(r"keepalive_timeout (\w+);", nginx)[1])
    for name, gateway in gateways.items():
        settings = gateway["environment"]
        check(set(settings) <= SETTINGS, f"{name}: unknown settings in {sorted(settings)}")
        delay = float(settings["SHUTDOWN_DELAY_SECONDS"])
        stop = delay + float(settings["SHUTDOWN_GRACE_SECONDS"])
        check(seconds(gateway["stop_grace_period"]) >= stop + LAST_RESULTS, f"{name}: it is killed while it drains")
        check(idle < delay, f"{name}: it closes connections that nginx may use")
        check(f"server {name}:5004 " in nginx, f"nginx does not know {name}")
        check(gateway["healthcheck"]["test"][1] == BINARY, f"{name}: another program")
        check(gateway["read_only"] and gateway["cap_drop"] == ["ALL"], f"{name}: privileges")
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                check((ROOT / "deploy" / source).exists(), f"{name}: {source} does not exist")
        check(all(port.startswith("127.0.0.1:") for port in service.get("ports", [])),
              f"{name}: it listens for other machines")
        check(":" in service["image"] or name in gateways, f"{name}: an image without a version")
    check("--enable-feature=exemplar-storage" in services["prometheus"]["command"], "prometheus: no exemplars")
    [source] = read("deploy/grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    interval = read("deploy/prometheus/prometheus.yaml")["global"]["scrape_interval"]
    check(source["jsonData"]["timeInterval"] == interval, "grafana: another interval than Prometheus's")
    example = (ROOT / "deploy/env.example").read_text()
    named = set(re.findall(r"\$\{(\w+)", (ROOT / "deploy/compose.yaml").read_text()))
    check(named == set(re.findall(r"^(\w+)=", example, re.M)), f"env.example: not {sorted(named)}")


def check_kubernetes():
    folder = Path("deploy/kubernetes")
    kustomization = read(folder / "kustomization.yaml")
    resources = [read(folder / name) for name in kustomization["resources"]]
    kinds = {resource["kind"]: resource for resource in resources}
    settings = dict(literal.split("=", 1)
                    for literal in kustomization["configMapGenerator"][0]["literals"])
    check(set(settings) <= SETTINGS, f"kustomization: unknown settings in {sorted(settings)}")
    pod = kinds["Deployment"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    references = container["env"]
    check({reference["name"] for reference in references} <= SETTINGS, "deployment: unknown settings")
    check(all("secretKeyRef" in reference["valueFrom"] for reference in references),
          "deployment: a secret in a file")
    stop = float(settings["SHUTDOWN_DELAY_SECONDS"]) + float(settings["SHUTDOWN_GRACE_SECONDS"])
    check(pod["spec"]["terminationGracePeriodSeconds"] >= stop + LAST_RESULTS, "deployment: killed while it drains")
    for probe, path in PROBES.items():
        check(container[probe]["httpGet"] == {"path": path, "port": "http"}, f"deployment: {probe}")
    check(pod["spec"]["securityContext"]["runAsNonRoot"], "deployment: root")
    context = container["securityContext"]
    check(context["readOnlyRootFilesystem"] and context["capabilities"]["drop"] == ["ALL"]
          and not context["allowPrivilegeEscalation"], "deployment: privileges")
    labels = pod["metadata"]["labels"]
    for kind, selector in [("Deployment", kinds["Deployment"]["spec"]["selector"]["matchLabels"]),
                           ("Service", kinds["Service"]["spec"]["selector"]),
                           ("PodDisruptionBudget", kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
                           ("NetworkPolicy", kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"])]:
        check(selector.items() <= labels.items(), f"{kind}: it selects other pods")
    rule = read(folder / "prometheus-adapter.yaml")["rules"]["custom"][0]["name"]["as"]
    metrics = kinds["HorizontalPodAutoscaler"]["spec"]["metrics"]
    check(rule in [metric["pods"]["metric"]["name"] for metric in metrics if metric["type"] == "Pods"],
          f"HorizontalPodAutoscaler: it does not use {rule}")


def check_workflows():
    for path in sorted((ROOT / ".github/workflows").iterdir()):
        workflow = read(path)
        check(workflow["permissions"] == {"contents": "read"}, f"{path.name}: permissions")
        for name, job in workflow["jobs"].items():
            check("timeout-minutes" in job, f"{path.name}: {name} has no time limit")
            for step in job["steps"]:
                uses = step.get("uses", "")
                check(not uses or re.search(r"@[0-9a-f]{40}$", uses), f"{path.name}: {uses} can change")


def check_systemd():
    unit = (ROOT / "deploy/systemd/gemini-gateway.service").read_text()
    for assignment in re.findall(r"^Environment=(\w+)=", unit, re.M):
        check(assignment in SETTINGS, f"systemd: {assignment} is no setting")
    check(f"ExecStart={BINARY} serve" in unit, "systemd: another program")


check_compose()
check_kubernetes()
check_workflows()
check_systemd()
print("\n".join(problems) or "nothing is wrong")
sys.exit(bool(problems))

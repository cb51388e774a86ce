#!/usr/bin/env python3
"""Fill in kubernetes.yaml and print it, for `kubectl apply -f -`.

    python launchers/kubernetes.py --image HOST/PATH:TAG --nodes 2 --gpus-per-node 8 --claim my-volume \
        -- --study my_study.yaml --out /shared/runs/mine | kubectl apply -f -

Values are checked and set as values of a YAML tree, never pasted into text.
"""

from __future__ import annotations

import argparse
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

# A DNS label: it names the Job, the Service and the pods.
NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,51}[a-z0-9])?")
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")


def manifests(
    *, image: str, name: str, nodes: int, gpus: int, cores: int, memory: str, claim: str, arguments: list[str]
) -> list[dict[str, Any]]:
    """The Service and the Job.

    Raises:
        ValueError: a value that Kubernetes would refuse, or `arguments` without an --out.
    """
    for what, value, pattern in (("name", name, NAME), ("claim", claim, NAME), ("image", image, IMAGE)):
        if not pattern.fullmatch(value):
            raise ValueError(f"{what} {value!r}: not a name that Kubernetes takes; use {pattern.pattern}")
    if not re.fullmatch(r"[1-9][0-9]*[MG]i", memory):
        raise ValueError(f"memory {memory!r}: give a number and Mi or Gi")
    if min(nodes, gpus, cores) < 1:
        raise ValueError("nodes, GPUs and cores are whole numbers above 0")
    given = [a.removeprefix("--out=") for a in arguments if a.startswith("--out=")]
    given += [value for flag, value in pairwise(arguments) if flag == "--out"]
    if not given or not all(place.startswith("/shared/") for place in given):
        # A pod's own disk goes with the pod: the next would begin at step 0 without a word.
        raise ValueError("no --out /shared/DIR after --: every pod writes into one directory on the volume")
    service, job = yaml.safe_load_all((Path(__file__).parent / "kubernetes.yaml").read_text(encoding="utf-8"))
    service["metadata"]["name"] = job["metadata"]["name"] = name
    service["spec"]["selector"]["job-name"] = name
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    spec["completions"] = spec["parallelism"] = nodes
    spec["template"]["metadata"]["labels"]["job-name"] = pod["subdomain"] = name
    (container,) = pod["containers"]
    container["image"], container["args"] = image, arguments
    values = {
        "NODES": nodes, "RANKS_PER_NODE": gpus, "OMP_NUM_THREADS": max(1, cores // gpus), "MASTER_ADDR": f"{name}-0.{name}",
    }  # fmt: skip
    for variable in container["env"]:
        if variable["name"] in values:
            variable["value"] = str(values[variable["name"]])
    container["resources"] = {
        "requests": {"cpu": str(cores), "memory": memory},
        "limits": {"memory": memory, "nvidia.com/gpu": gpus},
    }
    pod["volumes"][0]["persistentVolumeClaim"]["claimName"] = claim
    return [service, job]


def main() -> int:
    parser = argparse.ArgumentParser(description="print a Kubernetes Job that runs a study")
    parser.add_argument("--image", required=True, help="an image with this repository in /isobudget")
    parser.add_argument("--name", default="isobudget", help="name of Job, Service and pods")
    parser.add_argument("--nodes", type=int, default=1, help="pods")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="GPUs, and ranks, of each pod")
    parser.add_argument("--cores", type=int, default=64, help="cores of each pod")
    parser.add_argument("--memory", default="256Gi", help="memory of each pod")
    parser.add_argument("--claim", default="isobudget", help="a ReadWriteMany volume claim, mounted at /shared")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="for launch.py")
    given = parser.parse_args()
    try:
        found = manifests(
            image=given.image, name=given.name, nodes=given.nodes, gpus=given.gpus_per_node, cores=given.cores,
            memory=given.memory, claim=given.claim, arguments=given.arguments,
        )  # fmt: skip
    except ValueError as error:
        print(f"kubernetes.py: {error}", file=sys.stderr)
        return 2
    print(yaml.safe_dump_all(found, sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

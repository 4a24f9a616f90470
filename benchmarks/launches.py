"""How the passes of a training step are launched, and what each way costs before the first step.

python -m benchmarks.launches [--cases resnet18:64,resnet18:224,resnet50:224]

The bare loop of benchmarks.gpu, the same for all ways:

- eager: every kernel on its own (training.compile=off)
- graphs: CUDA graphs of the forward and the backward pass (training.compile=auto)
- whole step: one CUDA graph of both passes, loss and optimizer
- compile: torch.compile with static shapes
- reduce-overhead: torch.compile with static shapes and CUDA graphs
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks.gpu import STEPS, Case, bare, make_dataset, resident_batch, seconds
from benchmarks.measuring import spread
from src.data.dataset import Dataset
from src.training.setup import Setup, set_up
from src.utils.runtime import determinism

WAYS = ("eager", "graphs", "whole step", "compile", "reduce-overhead")


def loop(way: str, case: Case, dataset: Dataset) -> Callable[[], None]:
    """Return an epoch of the bare loop, launched in one of the ways."""
    setup, steps = set_up(case.config(), dataset), STEPS[case.size]
    if way == "graphs":
        return bare(setup, steps)
    if way == "whole step":
        return whole_step(setup, steps)
    if way == "eager":
        return bare(setup, steps, setup.context)
    mode = "default" if way == "compile" else way
    compiled: Any = torch.compile(setup.context.model, mode=mode, dynamic=False)
    return bare(setup, steps, replace(setup.context, model=compiled))


def whole_step(setup: Setup, steps: int) -> Callable[[], None]:
    """Return the bare loop with a step captured as one graph."""
    network, (images, labels) = setup.context, resident_batch(setup)
    optimizer = torch.optim.AdamW(network.model.parameters(), lr=1e-3, fused=True, capturable=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", network.autocast, network.autocast is not None):
            loss = nn.functional.cross_entropy(network.model(images).float(), labels)
        loss.backward()
        optimizer.step()

    network.model.train()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def train() -> None:
        for _ in range(steps):
            graph.replay()
        assert optimizer.state  # kept for the graph, which works in its memory

    return train


def row_of(way: str, case: Case, dataset: Dataset, turns: int) -> list[str]:
    """Measure one way; its first epoch holds the preparation."""
    started = time.perf_counter()
    work = loop(way, case, dataset)
    first = time.perf_counter() - started + seconds(work)
    each = [seconds(work) for _ in range(turns)]
    rates = [case.images / one for one in each]
    return [
        f"{case.model} {case.size} px",
        f"{way:15}",
        spread(rates, 0),
        "images/s",
        f"{first - min(each):.1f}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.launches", description=__doc__)
    parser.add_argument("--cases", default="resnet18:64,resnet18:224,resnet50:224")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    with TemporaryDirectory(prefix="gpu-") as name, determinism(enabled=True):
        for item in args.cases.split(","):
            case = Case(item.partition(":")[0], int(item.partition(":")[2]))
            dataset = make_dataset(Path(name), case)
            for way in args.ways.split(","):
                print("  ".join(row_of(way, case, dataset, args.turns)), "s to prepare", flush=True)


if __name__ == "__main__":
    main()

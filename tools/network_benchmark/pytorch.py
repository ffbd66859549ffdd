"""Times a worker of PyTorch with DistributedDataParallel and Gloo.

It does the work of `ours.py`: forward, backward, all-reduce and SGD with momentum, images in
channels-last. It prints the seconds of each step as JSON.
"""

import contextlib
import itertools
import json
import os
import sys
import time

import torch
from torch import nn

# Blocks of each stage, as in table 1 of He et al. 2016, https://arxiv.org/abs/1512.03385.
_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


class Bottleneck(nn.Module):
    """Three convolutions, the stride on that of 3 x 3."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(_convolution(channels, width, 1), nn.ReLU(inplace=True)),
            *(_convolution(width, width, 3, stride), nn.ReLU(inplace=True)),
            _convolution(width, 4 * width, 1),
        )
        is_same = channels == 4 * width and stride == 1
        self.shortcut = nn.Identity() if is_same else _convolution(channels, 4 * width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns 4 * width channels, smaller by the stride."""
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet(name: str) -> nn.Module:
    """Returns a ResNet for ImageNet."""
    stem = (_convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    blocks, channels = [], 64
    for stage, count in enumerate(_BLOCKS[name]):
        width = 64 * 2**stage
        for block in range(count):
            blocks.append(Bottleneck(channels, width, 2 if stage > 0 and block == 0 else 1))
            channels = 4 * width
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    return nn.Sequential(*stem, *blocks, *head)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def main() -> None:
    """Trains, and prints the seconds of the steps."""
    workload = json.loads(sys.argv[1])
    cluster = json.loads(os.environ.get("TF_CONFIG", '{"cluster": {"worker": [""]}}'))
    workers = cluster["cluster"]["worker"]
    rank = cluster["task"]["index"] if len(workers) > 1 else 0
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(rank)
    model = resnet(workload["model"]).to(memory_format=torch.channels_last)
    if len(workers) > 1:
        host, port = workers[0].rsplit(":", 1)
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://{host}:{port}", rank=rank, world_size=len(workers)
        )
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    batch, size = workload["batch"], workload["image_size"]
    micro = workload["micro_batch_size"]
    images = torch.rand(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,))
    is_float32 = workload["precision"] == "float32"
    ends = []
    for _ in range(workload["steps"] + 1):
        optimizer.zero_grad()
        for start in range(0, batch, micro):
            is_last = start + micro >= batch
            apart = len(workers) == 1 or is_last
            with contextlib.nullcontext() if apart else model.no_sync():
                with torch.autocast("cpu", torch.bfloat16, enabled=not is_float32):
                    logits = model(images[start : start + micro])
                loss = torch.nn.functional.cross_entropy(
                    logits.float(), labels[start : start + micro]
                )
                (loss * micro / batch).backward()
        optimizer.step()
        ends.append(time.monotonic())
    print(json.dumps([end - begin for begin, end in itertools.pairwise(ends)]))
    if len(workers) > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

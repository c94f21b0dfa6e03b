"""Training steps in plain PyTorch, as ``versus_torch.py`` times them."""

import argparse
import time
from typing import Any

import torch  # pyright: ignore[reportMissingImports]  # an extra: "versus"
import torch_networks


class TorchSteps:
    """A network in PyTorch; ``chunk`` takes some steps, waits for them and returns the seconds a step."""

    def __init__(self, network: str, variant: Any, options: argparse.Namespace, gpu_steps: int):
        torch.manual_seed(0)
        self.variant, self.batch_size = variant, options.batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.size, self.count = options.image_size, 10 * options.batch_size
        if self.device.type == "cpu":
            torch.set_num_threads(options.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        model = torch_networks.build(network, options.num_classes, None if variant.density == 1 else variant.density)
        self.trainable = torch_networks.num_trainable(model)
        model = model.to(self.device)
        if variant.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.001, weight_decay=5e-4, fused=True)
        images = torch.randint(0, 256, (self.count, self.size, self.size, 3), dtype=torch.uint8, device=self.device)
        self.padded = torch.nn.functional.pad(images, (0, 0, 4, 4, 4, 4))
        self.labels = torch.randint(0, options.num_classes, (self.count,), device=self.device)
        self.loss = torch.zeros((), device=self.device)
        self.positions = torch.arange(self.size, device=self.device)
        self.model, self.batch = model, self.make_batch
        if variant.compiled:
            self.model, self.batch = torch.compile(model, mode=variant.compiled), torch.compile(self.make_batch)
        started = time.perf_counter()
        self.step()
        self.wait()
        self.compile_seconds = time.perf_counter() - started
        for _ in range(3):  # CUDA graphs are recorded in the second step
            self.step()
        self.wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.steps = 1 if self.device.type == "cpu" else gpu_steps

    def make_batch(self) -> tuple[Any, Any]:
        """Pick images at random, crop them out of a border of four pixels, flip half of them, and normalise."""
        shape = (self.batch_size, 1)
        rows = torch.randint(0, self.count, shape, device=self.device)
        top, left = torch.randint(0, 9, (2, *shape), device=self.device)
        flipped = torch.rand(shape, device=self.device) < 0.5
        columns = torch.where(flipped, self.positions.flip(0), self.positions) + left
        picked = self.padded[rows[..., None], (self.positions + top)[:, :, None], columns[:, None, :]]
        images = ((picked.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
        layout = torch.channels_last if self.variant.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout), self.labels[rows[:, 0]]

    def step(self) -> None:
        images, labels = self.batch()
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.variant.dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.loss += loss.detach()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def chunk(self) -> float:
        started = time.perf_counter()
        for _ in range(self.steps):
            self.step()
        self.wait()
        return (time.perf_counter() - started) / self.steps

    def peak_bytes(self) -> int:
        """Return the most memory that the steps held on a GPU; 0 on a CPU, where PyTorch does not count memory."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

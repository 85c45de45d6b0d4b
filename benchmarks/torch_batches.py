"""A worker process that reads the same kind of batches with PyTorch's DataLoader. (See benchmarks/data_pipeline.py.)"""

import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.worker import serve

BATCHES_AT_MOST = 1_000_000


class PairedCrops(Dataset):
    """Random crops of pairs in folder/input and folder/target, mirrored and turned alike: uint8 [H, W, 3] twice."""

    def __init__(self, folder, crop_px, cached):
        self.paths = [(path, folder / "target" / path.name) for path in sorted((folder / "input").iterdir())]
        self.crop_px = crop_px
        self.decoded = [self.read(index) for index in range(len(self.paths))] if cached else None

    def read(self, index):
        return [np.asarray(Image.open(path).convert("RGB")) for path in self.paths[index]]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        pair = self.decoded[index] if self.decoded else self.read(index)
        height, width = pair[0].shape[:2]
        top, left = random.randrange(height - self.crop_px + 1), random.randrange(width - self.crop_px + 1)
        mirror_columns, mirror_rows, quarters = random.random() < 0.5, random.random() < 0.5, random.randrange(4)
        crops = []
        for image in pair:
            crop = image[top : top + self.crop_px, left : left + self.crop_px]
            if mirror_columns:
                crop = crop[:, ::-1]
            if mirror_rows:
                crop = crop[::-1]
            crops.append(torch.from_numpy(np.rot90(crop, quarters).copy()))
        return crops


class Batches:
    """The batches of a DataLoader with `job["workers"]` processes."""

    def __init__(self, job):
        dataset = PairedCrops(Path(job["folder"]), job["crop_px"], job["cached"])
        sampler = RandomSampler(dataset, replacement=True, num_samples=BATCHES_AT_MOST * job["batch"])
        loader = DataLoader(dataset, job["batch"], sampler=sampler, num_workers=job["workers"])
        self.batches = iter(loader)

    def run(self):
        self.batch = next(self.batches)

    def wait(self):
        pass

    def describe(self):
        times = os.times()
        workers = sum(_cpu_s(process.pid) for process in multiprocessing.active_children())
        return {"cpu_s": times.user + times.system + workers}


def _cpu_s(process_id):
    """User and system time of a process that still runs."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    serve(Batches)

"""A worker process of the PyTorch side of a race. (Started by benchmarks/sides.py.)"""

import numpy as np
import torch

from benchmarks.torch_peer import ConcertormerPeer, Trainer, load_state
from benchmarks.worker import serve


class _OnDevice:
    """What all tasks of this side share."""

    def __init__(self, job):
        if job["device"] == "gpu" and not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no GPU")
        self.device = "cuda" if job["device"] == "gpu" else "cpu"
        self.dtype = getattr(torch, job["dtype"])
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, on both sides
        network = ConcertormerPeer(
            **job["size"], tlc_window=job["tlc_window"], windows_together=job["windows_together"]
        )
        self.network = load_state(network, torch.load(job["weights"])["params"]).to(self.device)
        self.arrays = np.load(job["images"])

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def describe(self):
        gpu = self.device == "cuda"
        return {
            "versions": {"torch": torch.__version__},
            "device": torch.cuda.get_device_name() if gpu else "cpu",
            "device_bytes": torch.cuda.max_memory_allocated() if gpu else None,
            "threads": torch.get_num_threads(),
        }


class Restoration(_OnDevice):
    """The restored images of one batch."""

    def __init__(self, job):
        super().__init__(job)
        self.network = self.network.to(self.dtype).eval()
        self.forward = torch.compile(self.network) if job["compile"] else self.network
        images = torch.from_numpy(self.arrays["input"]).permute(0, 3, 1, 2).contiguous()
        self.images = (images.float() / 255).to(self.device, self.dtype)

    def run(self):
        with torch.inference_mode():
            self.restored = self.forward(self.images)[-1]

    def save(self, path):
        np.save(path, self.restored.float().permute(0, 2, 3, 1).cpu().numpy())


class Training(_OnDevice):
    """Training steps on one batch, over and over."""

    def __init__(self, job):
        super().__init__(job)
        autocast = None if self.dtype == torch.float32 else (self.device, self.dtype)
        compiled = torch.compile(self.network) if job["compile"] else None
        self.trainer = Trainer(self.network, compiled, steps=job["schedule_steps"], autocast=autocast)
        self.batch = [torch.from_numpy(self.arrays[part]).to(self.device) for part in ("input", "target")]
        self.losses = []

    def run(self):
        images, target = (part.permute(0, 3, 1, 2).float() / 255 for part in self.batch)
        self.losses.append(self.trainer.step(images, target)[0])

    def save(self, path):
        np.save(path, torch.stack(self.losses).cpu().numpy())


if __name__ == "__main__":
    serve(lambda job: (Training if job["train"] else Restoration)(job))

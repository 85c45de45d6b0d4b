"""Weights: checkpoints, and published PyTorch models converted to ours and back, without PyTorch and without trust."""

from concertormer_jax.weights.conversion import load_weights_file, params_from_torch, torch_from_params
from concertormer_jax.weights.state_dict import read_state_dict, write_state_dict

__all__ = ["load_weights_file", "params_from_torch", "read_state_dict", "torch_from_params", "write_state_dict"]

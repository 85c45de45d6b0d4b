"""Weights of the published PyTorch models, to ours and back, from files that are not trusted and without PyTorch."""

from concertormer_jax.weights.conversion import load_weights_file, params_from_torch, torch_from_params
from concertormer_jax.weights.state_dict import read_state_dict, write_state_dict

__all__ = ["load_weights_file", "params_from_torch", "read_state_dict", "torch_from_params", "write_state_dict"]

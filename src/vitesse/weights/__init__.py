"""Weights: named as ours, kept as safetensors, exchanged with timm and the original releases."""

from vitesse.weights.files import read_checkpoint_header, save_weights
from vitesse.weights.hub import fetch_pretrained
from vitesse.weights.load import LoadReport, load_weights

__all__ = ["LoadReport", "fetch_pretrained", "load_weights", "read_checkpoint_header", "save_weights"]

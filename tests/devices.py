"""How many processes with a model each this machine has a device for."""

import os

import torch

DEVICES = torch.cuda.device_count() or os.cpu_count() or 1

"""One thread: the tests are small, run beside other work, and must give the same numbers everywhere."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import torch

torch.set_num_threads(1)

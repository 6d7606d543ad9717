"""A pytest plugin that loads the pretend device, from the file that PRETEND_DEVICE names."""

import os
import types

import torch

torch.ops.load_library(os.environ["PRETEND_DEVICE"])
torch.utils.rename_privateuse1_backend("pretend")

_module = types.ModuleType("torch.pretend")
_module.is_available = lambda: True
_module.device_count = lambda: 1
_module.current_device = lambda: 0
_module.set_device = lambda device: None
_module._is_in_bad_fork = lambda: False
_module.manual_seed_all = lambda seed: None
_module.synchronize = lambda device=None: None
_module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
_module.get_rng_state = lambda device=None: torch.get_rng_state()  # it draws the CPU's random numbers
_module.set_rng_state = lambda state, device=None: None
torch._register_device_module("pretend", _module)
torch.utils.generate_methods_for_privateuse1_backend()
# `.to("pretend")` would make another parameter of each; CUDA's changes the parameter, so that tied ones stay tied.
torch.__future__.set_swap_module_params_on_conversion(True)

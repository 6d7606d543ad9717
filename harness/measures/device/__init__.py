"""What is particular to a device: TF32, reruns, kernels of attention, torch.compile."""

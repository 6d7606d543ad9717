"""GPTs that are no torch.nn.Module, wrapped in one: functions over parameters, and plain classes."""

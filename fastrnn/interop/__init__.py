"""What lets code that knows `torch.nn` alone take our modules: class checks, tracers, counters."""

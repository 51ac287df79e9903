"""Speed (speed, gpu, spectra), quality and the paper's tasks, measured; results holds what came."""

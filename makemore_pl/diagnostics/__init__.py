"""What activations, gradients, parameters and BatchNorm tell about a training run: statistics, taps, callbacks."""

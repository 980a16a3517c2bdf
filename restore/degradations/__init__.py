"""What makes the blurred, noisy, small and compressed pictures that networks are trained and tested on."""

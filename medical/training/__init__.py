"""Training of segmentation networks: cases, transforms, losses, pre-training, transfer."""

"""The demonstration: a LeNet-300-100 trained on Fashion-MNIST, and the images that test it."""

"""Names that help and completion show, written down so that neither loads the engine.

The engine imports PyTorch, which takes seconds; a test holds these to what the engine has.
"""

PRESETS = (
    "magnitude", "randomized", "principal", "aligned", "spectral", "wanda", "least-squares",
    "sparsegpt", "alps", "auto", "best",
)  # fmt: skip
METHODS = ("magnitude", "randomized", "principal", "aligned")
MODELS = ("llama-7b", "llama-70b", "llama-405b", "minilm", "vgg19")
DTYPES = ("float16", "bfloat16", "float32", "float64")
#: Where Debian's package dataset-fashion-mnist puts its files.
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"

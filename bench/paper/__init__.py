"""The tasks of Yao, Yu, Koutis (arXiv 2307.08982), run on networks trained here.

These are spectrum learning, one-shot pruning, prune-retrain, and the paper's open questions:

    spectral-engine reproduce oneshot --network lenet-300-100

Only the public interface of `spectral_engine` is used. One file a task, in `tasks/`; what they
share is beside them: data, networks, training, jobs, statistics, output.
"""

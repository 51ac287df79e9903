"""Tasks that follow one network through pruning and retraining while one setting varies."""
